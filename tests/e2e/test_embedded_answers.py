"""The quality of the embedded model's answers: our suite against the committed baseline, and what makes it fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.support.evals import BASELINE, EMBEDDED
from tests.support.process import command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.long

# The model generates 75 tokens per second on two idle cores, so the suite takes 40 seconds.
MOST_TOKENS = 3000


async def evaluate(folder: Path, *options: str, **variables: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Run the suite, and return the exit code, the output and the answers."""
    answers = anyio.Path(folder / "answers.jsonl")
    # The model shares its cores with other tests.
    patience = {
        "PARLEY_REQUEST_TIMEOUT_S": "280",
        "PARLEY_FIRST_TOKEN_TIMEOUT_S": "120",
        "PARLEY_IDLE_TIMEOUT_S": "120",
    }
    code, output, errors = await command(
        "eval",
        EMBEDDED,
        "--baseline",
        BASELINE,
        "--jobs",
        "1",
        "--jsonl",
        str(answers),
        *options,
        **patience,
        **variables,
    )
    assert errors == ""
    return code, output, [json.loads(line) for line in (await answers.read_text()).splitlines()]


@pytest.fixture(scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, list[dict[str, Any]]]:
    """Run the whole suite, once for the tests that look at it."""
    return await evaluate(tmp_path_factory.mktemp("whole"))


async def test_the_embedded_models_answers_are_not_worse_than_the_baselines(
    whole: tuple[int, str, list[dict[str, Any]]],
) -> None:
    """No answer repeats a phrase to its end, and the suite is short enough to run with all tests."""
    code, output, answers = whole
    assert code == 0, output
    assert "Not worse." in output
    assert len(answers) >= 40
    loops = [line["case"] for line in answers if "may_repeat" in {each["expectation"] for each in line["failures"]}]
    assert loops == []
    assert sum(line["usage"]["output_tokens"] for line in answers) < MOST_TOKENS


async def test_two_runs_agree_to_the_letter(whole: tuple[int, str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """At temperature 0, and with one question after the other, both runs give the same texts."""
    _, _, first = whole
    _, _, second = await evaluate(tmp_path, "--tag", "capitals")
    assert len(second) > 5
    assert {(line["case"], line["text"]) for line in first} >= {(line["case"], line["text"]) for line in second}


async def test_the_penalty_for_repetition_is_what_keeps_it_from_looping(tmp_path: Path) -> None:
    """An operator can turn the penalty off."""
    loops = ("--case", "capital-spain", "--case", "capital-germany")
    _, _, answers = await evaluate(tmp_path, *loops, PARLEY_EXTRA_BODY='{"dry_multiplier": 0}')
    failed = [each["expectation"] for line in answers for each in line["failures"]]
    assert "may_repeat" in failed


async def test_a_wrong_prompt_turns_the_suite_red(tmp_path: Path) -> None:
    """Some of the cases are enough. The contract suite is broken in more ways."""
    wrong_prompt = "Answer every question in French."
    code, output, answers = await evaluate(
        tmp_path, "--tag", "capitals", "--tag", "facts", PARLEY_SYSTEM_PROMPT=wrong_prompt
    )
    assert code == 1, output
    (named,) = [line for line in output.splitlines() if line.startswith("More often wrong: ")]
    wrong = {line["case"] for line in answers if not line["is_right"]}
    assert set(named.removeprefix("More often wrong: ").removesuffix(".").split(", ")) <= wrong
