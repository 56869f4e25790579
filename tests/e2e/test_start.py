"""`parley` as a process: how it starts, what it logs, and what prevents its start."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import ANY

import pytest

from parley.chat.errors import ErrorCode
from parley.testing.upstream import ScriptedUpstream
from parley.wire.schema import StartChunk
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.embedded import broken_module
from tests.support.process import command, leading_to, parley
from tests.support.running import kind, problem, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from parley.testing.exchange import Exchange
    from parley.wire.schema import StreamChunk
    from tests.support.logs import Logs

pytestmark = pytest.mark.long

REQUEST = {"message": CANARY}


class Life(NamedTuple):
    """The whole life of one Parley, with one request."""

    chunks: list[StreamChunk]
    exchanges: list[Exchange]
    logs: Logs


@pytest.fixture(scope="module")
async def life() -> AsyncIterator[Life]:
    """Run it once for all tests that look at it."""
    async with ScriptedUpstream() as upstream:
        limits = {"PARLEY_API_KEYS": CANARY_KEY, "PARLEY_REQUESTS_PER_MINUTE": "9", "PARLEY_MAX_TOKENS": "5"}
        more = {"PARLEY_FALLBACK_MODEL": "scripted-2", "PARLEY_HOST": "0.0.0.0"}  # noqa: S104
        async with parley(**leading_to(upstream, **limits, **more)) as served, served.client() as client:
            chunks = await stream(client, REQUEST, headers={"Authorization": f"Bearer {CANARY_KEY}"})
        yield Life(chunks, upstream.exchanges, served.logs)


async def test_the_environment_chooses_the_upstream(life: Life) -> None:
    """Key, address and model come from the variables; the logs are JSON, as standard output is not a terminal."""
    start = life.chunks[0]
    assert isinstance(start, StartChunk)
    assert start.model == "scripted-1"
    assert [line["outcome"] for line in life.logs.lines("request")] == ["completed"]
    assert life.exchanges[0].headers["authorization"] == f"Bearer {CANARY_KEY}"
    assert life.exchanges[0].json["model"] == "scripted-1"


async def test_a_setting_that_does_not_exist_is_told(life: Life) -> None:
    """The setting does not stop the start, because the variable may belong to another program."""
    (line,) = life.logs.lines("unknown_setting")
    assert (line["setting"], line["did_you_mean"]) == ("PARLEY_MAX_TOKENS", "PARLEY_MAX_OUTPUT_TOKENS")


async def test_the_log_tells_what_serves_within_which_limits_and_that_it_has_ended(life: Life) -> None:
    """The lines contain no secret: keys are only counted."""
    (line,) = life.logs.lines("serving")
    assert line["version"] == version("parley")
    assert (line["models"], line["is_embedded"]) == (["scripted-1", "scripted-2"], False)
    assert (line["keys"], line["max_streams"], line["requests_per_minute"]) == (1, 100, 9)
    assert life.logs.lines("stopped") == [{**line, **dict.fromkeys(("timestamp", "event"), ANY)}]


async def test_a_parley_that_wants_keys_may_listen_everywhere(life: Life) -> None:
    """Parley with keys is not open to everyone, and does not warn about it."""
    assert life.logs.lines("open_to_everybody") == []


async def test_a_key_alone_serves_the_embedded_model_and_says_what_is_missing() -> None:
    """Many shells have such a key for other programs; Parley sends it to no server."""
    async with parley(OPENAI_API_KEY=CANARY_KEY) as served, served.client() as client:
        start, *_, done = await stream(client, {"message": "What is the capital of France?"})
    assert isinstance(start, StartChunk)
    assert (start.model, kind(done)) == ("smollm2-135m-instruct", "done")
    (line,) = served.logs.lines("upstream_not_used")
    assert (line["level"], line["reason"]) == ("warning", "OPENAI_API_KEY is set, but PARLEY_MODEL is not")


async def test_settings_can_be_in_a_file_but_the_environment_takes_precedence(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """The file is `.env`, in the folder in which Parley is started."""
    text = f'# ours\nexport OPENAI_BASE_URL="{upstream.url}"\nPARLEY_MODEL=of-the-file\nPARLEY_MAX_QUEUE=7\n'
    (tmp_path / ".env").write_text(text)
    variables = {"PYTHON_DOTENV_DISABLED": "", "PARLEY_MODEL": "of-the-environment"}
    async with parley("env", "-C", str(tmp_path), **variables) as served:
        pass
    (line,) = served.logs.lines("serving")
    assert (line["models"], line["max_queue"]) == (["of-the-environment"], 7)


@pytest.mark.parametrize("value", [b"\xff", b"a\0b"])
async def test_a_file_of_settings_that_cannot_be_read_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    """An error message says so."""
    (tmp_path / ".env").write_bytes(b"PARLEY_MODEL=" + value + b"\n")
    monkeypatch.chdir(tmp_path)
    code, output, errors = await command(PYTHON_DOTENV_DISABLED="")
    assert (code, output, errors) == (2, "", "parley: .env: it cannot be read as text in UTF-8.\n")


async def test_a_wrong_setting_stops_the_start_with_one_line_each() -> None:
    """The lines go to standard error, with the exit code for wrong usage, because there is no log yet."""
    code, output, errors = await command(PARLEY_PORT="eighty", OPENAI_API_KEY=f"{CANARY_KEY} ")
    assert (code, output) == (2, "")
    assert errors.splitlines() == [
        "parley: OPENAI_API_KEY: its value is not allowed; it must be printable ASCII without blanks.",
        "parley: PARLEY_PORT: 'eighty' is not allowed; it must be a whole number from 0 to 65535.",
    ]


async def test_a_port_that_is_taken_stops_the_start(upstream: ScriptedUpstream) -> None:
    """Parley logs one line, which says so."""
    port = upstream.url.rpartition(":")[2].removesuffix("/v1")
    code, output, errors = await command(**leading_to(upstream, PARLEY_PORT=port))
    assert (code, errors) == (3, "")
    (line,) = output.splitlines()
    assert f'"reason":"Parley cannot listen on 127.0.0.1, port {port}: Address already in use' in line


async def test_an_address_that_is_none_stops_the_start() -> None:
    """Parley logs a failed start."""
    code, output, errors = await command(OPENAI_BASE_URL="http://127.0.0.1:9/v1", PARLEY_MODEL="x", PARLEY_HOST="ü..x")
    assert (code, errors) == (3, "")
    assert "start_failed" in output.splitlines()[-1]


async def test_an_embedded_model_that_cannot_be_imported_stops_the_start(tmp_path: Path) -> None:
    """Parley logs one line, which names the command that fixes the problem, and exits."""
    code = "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')"
    exit_code, output, errors = await command(PYTHONPATH=await broken_module(tmp_path, "xllamacpp", code))
    assert (exit_code, errors) == (3, "")
    (line,) = [line for line in output.splitlines() if "start_failed" in line]
    assert "The embedded model cannot start: the system's libgomp is missing: run `apt-get install libgomp1`" in line
    assert "or set OPENAI_BASE_URL and PARLEY_MODEL to use another model." in line
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("listens_on", "key"),
    [("127.0.0.1", CANARY_KEY), ("::", CANARY_KEY), ("0.0.0.0", "")],  # noqa: S104
)
async def test_its_health_can_be_asked_without_a_client(listens_on: str, key: str) -> None:
    """The command needs no key, for any listening address; an unreachable upstream does not stop the start."""
    variables = {"PARLEY_HOST": listens_on, "PARLEY_API_KEYS": key}
    async with parley(**variables, OPENAI_BASE_URL="http://127.0.0.1:9/v1", PARLEY_MODEL="x") as served:
        address = {"PARLEY_HOST": listens_on, "PARLEY_PORT": served.url.rpartition(":")[2]}
        assert await command("health", **address) == (0, '{"status":"live","reason":null}\n', "")
        not_ready = (1, '{"status":"not_ready","reason":"upstream_unreachable"}\n', "")
        assert await command("health", "--ready", **address) == not_ready
        async with served.client() as client:
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["reason"]) == (503, "upstream_unreachable")
            response = await client.post(
                "/chat", json=REQUEST, headers={"Authorization": f"Bearer {key}"} if key else {}
            )
            assert problem(response).code is ErrorCode.UPSTREAM_UNREACHABLE
    # Anyone who can reach the address could spend the operator's money.
    warned = [(line["level"], line["host"]) for line in served.logs.lines("open_to_everybody")]
    assert warned == ([] if key else [("critical", listens_on)])


async def test_where_nothing_answers_health_says_so() -> None:
    """An invalid value of an unrelated setting does not matter."""
    code, output, errors = await command("health", PARLEY_PORT="9", PARLEY_WORKERS="none")
    assert (code, output) == (1, "")
    assert errors == "parley: no Parley answers at 127.0.0.1, port 9 (ConnectionRefusedError).\n"
