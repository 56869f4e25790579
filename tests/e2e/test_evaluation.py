"""`parley eval`, as an operator and as a CI job run it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import anyio
import pexpect
import pytest

from parley.settings import Secret
from parley.testing.upstream import answer, hang, in_turn
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.evals import CONTRACT, LOSES_FIRST_TEXT, LOSES_HISTORY, VARIABLES, broken_parley, echo_or_fault
from tests.support.process import PARLEY, arguments, command, environment, leading_to, watched
from tests.support.running import running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from parley.settings import Settings
    from parley.testing.upstream import ScriptedUpstream

SUITE = """
cases:
  - {id: paris, message: What is the capital of France?, expect: {contains: Paris}}
  - {id: rome, message: What is the capital of Italy?, expect: {contains: Rome}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """Write a suite of two cases."""
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE)
    return str(path)


@pytest.fixture
def url(client: httpx.AsyncClient) -> str:
    """Return the address of a Parley with the scripted upstream."""
    return str(client.base_url)


async def contract(upstream: ScriptedUpstream, **variables: str) -> tuple[int, str, str]:
    """Run the contract suite against a Parley that the evaluation starts with these variables."""
    upstream.script = echo_or_fault
    return await command("eval", CONTRACT, "--jobs", "4", **leading_to(upstream, **{**VARIABLES, **variables}))


async def test_the_contract_suite_passes(upstream: ScriptedUpstream) -> None:
    """The evaluation starts a Parley, and stops it."""
    code, output, errors = await contract(upstream)
    assert (code, errors) == (0, "")
    assert "Not worse." in output
    assert "model scripted-1: 20 of 20 answers right, 100.0%" in output


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("prompt", {"prompt"}),
        ("sampling", {"sampling"}),
        ("history", {"history"}),
        ("parser", {"whole", "code-points", "truncated"}),
    ],
)
async def test_what_breaks_parley_turns_the_suite_red(
    upstream: ScriptedUpstream, tmp_path: Path, name: str, cases: set[str]
) -> None:
    """The output names the cases that failed."""
    variables = {
        "prompt": lambda: {"PARLEY_SYSTEM_PROMPT": "Answer in French."},
        "sampling": lambda: {"PARLEY_TEMPERATURE": "1.5"},
        "history": lambda: {"PYTHONPATH": broken_parley(tmp_path, *LOSES_HISTORY)},
        "parser": lambda: {"PYTHONPATH": broken_parley(tmp_path, *LOSES_FIRST_TEXT)},
    }[name]()
    code, output, _ = await contract(upstream, **variables)
    assert code == 1
    (named,) = [line for line in output.splitlines() if line.startswith("Wrong: ")]
    wrong = set(named.removeprefix("Wrong: ").removesuffix(".").split(", "))
    assert cases <= wrong if name == "parser" else wrong == cases


async def test_answers_are_shown_only_if_that_is_asked_for(
    upstream: ScriptedUpstream, url: str, suite: str, tmp_path: Path
) -> None:
    """Each report has the rest; only the file of answers always has the text. Reports omit control codes."""
    folder = anyio.Path(tmp_path)
    files = ["--markdown", str(folder / "m.md"), "--junit", str(folder / "j.xml"), "--jsonl", str(folder / "a.jsonl")]

    async def run(*options: str) -> tuple[int, list[str]]:
        upstream.script = in_turn(answer("\x1b[31mParis", " it is"), answer("Oslo \x00 it is"))
        code, output, errors = await command("eval", suite, "--url", url, "--jobs", "1", *files, *options)
        assert errors == ""
        return code, [output, *[await (folder / name).read_text() for name in ("m.md", "j.xml")]]

    code, reports = await run()
    assert code == 1
    for report in reports:
        assert "is not all found: Rome" in report
        assert "it is" not in report.replace("it is not all", "")
    answers = [json.loads(line) for line in (await (folder / "a.jsonl").read_text()).splitlines()]
    assert [line["text"] for line in answers] == ["\x1b[31mParis it is", "Oslo \x00 it is"]
    assert [line["case"] for line in answers] == ["paris", "rome"]
    assert answers[1]["failures"] == [{"expectation": "contains", "detail": "is not all found: Rome"}]
    assert len({line["correlation_id"] for line in answers}) == 2

    code, reports = await run("--show-text")
    assert code == 1
    for report in reports:
        assert "Paris it is" in report
        assert "\x1b" not in report
    cases = ET.fromstring(reports[2]).findall("testsuite/testcase")  # noqa: S314  # it is our own file
    assert [(case.get("name"), [part.tag for part in case]) for case in cases] == [
        ("paris", ["system-out"]),
        ("rome", ["failure", "system-out"]),
    ]
    assert reports[1].startswith("**Worse.**\n\n- Wrong: rome.\n- mine (")
    assert "\n| rome | 0/1 | 0.00 | 1/1 | 3 | " in reports[1]


async def test_a_baseline_is_kept_and_judged_against(
    upstream: ScriptedUpstream, url: str, suite: str, tmp_path: Path
) -> None:
    """A case that was wrong before does not count as worse; a missing case does."""
    upstream.script = answer("Paris")
    baseline = str(tmp_path / "baseline.json")
    code, output, _ = await command("eval", suite, "--url", url, "--write-baseline", baseline)
    assert code == 0
    kept = json.loads(await anyio.Path(baseline).read_text())
    assert (kept["model"], kept["pass_rate"], kept["cases"]["rome"]["right"]) == ("scripted-1", 0.5, 0)
    code, output, _ = await command("eval", suite, "--url", url, "--baseline", baseline)
    assert code == 0
    assert "Not worse." in output
    await anyio.Path(suite).write_text(SUITE.rpartition("  - ")[0])
    code, output, _ = await command("eval", suite, "--url", url, "--baseline", baseline)
    assert code == 1
    assert "Missing from the suite: rome." in output


async def test_a_parley_that_serves_is_evaluated_with_its_key(
    upstream: ScriptedUpstream, make_settings: Callable[..., Settings], suite: str
) -> None:
    """With `--url`, all other settings are ignored. Without the key, nothing can be judged."""
    upstream.script = answer("Paris and Rome")
    async with running(make_settings(api_keys=Secret(CANARY_KEY))) as client:
        url = ("--url", str(client.base_url))
        code, output, _ = await command("eval", suite, *url, PARLEY_API_KEYS=CANARY_KEY, PARLEY_RETRIES="nonsense")
        assert (code, "2 of 2 answers right" in output) == (0, True)
        code, output, _ = await command("eval", suite, *url)
        assert (code, "failed: unauthorized" in output, "Could not be judged: paris, rome." in output) == (
            2,
            True,
            True,
        )


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (["--url", "http://127.0.0.1:9"], {}, "failed: unreachable"),
        (["--url", "http://x:nope"], {}, "http://x:nope: is no address"),
        (["--tag", "none"], {"PYTHONIOENCODING": "ascii"}, "no such tag or case: none"),
        ([], {"PARLEY_MODEL_PATH": "/none.gguf"}, "PARLEY_MODEL_PATH names no file"),
        ([], {"PARLEY_PORT": "x"}, "PARLEY_PORT"),
        (["--baseline", "/none.json"], {}, "/none.json: cannot be read"),
        (["--repeat", "0"], {}, "must be from 1 to 1000"),
        (["--write-baseline", "/none/b.json", "--tag", "a"], {}, "--write-baseline needs the whole suite"),
        (["--url", "http://127.0.0.1:9", "--markdown", "/none/m.md"], {}, "/none/m.md: cannot be written"),
    ],
)
async def test_what_cannot_be_judged_has_an_exit_code_of_its_own(
    suite: str, options: list[str], variables: dict[str, str], message: str
) -> None:
    """The output names the reason."""
    code, output, errors = await command("eval", suite, *options, **variables)
    assert code == 2
    assert message in output + errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_parley_that_was_started_ends_with_the_evaluation(
    upstream: ScriptedUpstream, suite: str, number: signal.Signals
) -> None:
    """The signal comes in the middle of an answer."""
    upstream.script = hang
    null = asyncio.subprocess.DEVNULL
    variables = environment(**leading_to(upstream, PARLEY_DRAIN_TIMEOUT_S="1"))
    process = await asyncio.create_subprocess_exec(*PARLEY, "eval", suite, env=variables, stdout=null, stderr=null)
    with anyio.fail_after(60):
        await upstream.next_exchange()
        (child,) = arguments(process.pid).keys() - {process.pid}
        with watched(child) as gone:
            process.send_signal(number)
            assert await process.wait() == 130
            await gone.wait()


async def test_a_terminal_shows_how_far_it_is(upstream: ScriptedUpstream, url: str, suite: str) -> None:
    """The terminal shows the progress, and then the table."""
    upstream.script = answer("Paris and Rome")

    def run() -> str:
        shown = pexpect.spawn(
            sys.executable,
            ["-m", "parley", "eval", suite, "--url", url, "--repeat", "3"],
            env={**environment(), "TERM": "xterm"},
            encoding="utf-8",
            dimensions=(40, 160),
            timeout=60,
        )
        shown.expect("Not worse")
        before = str(shown.before)
        shown.expect(pexpect.EOF)
        return before

    shown = await asyncio.to_thread(run)
    assert "mine" in shown
    assert "%" in shown
    assert "3/3" in shown
    assert CANARY not in shown
