"""The expectations that a case may have of an answer, and the checks of its text."""

from __future__ import annotations

from typing import Any

import pytest

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason, Usage, UsageSource
from parley.evaluation import texts
from parley.evaluation.answers import BROKEN_OFF, Answer
from parley.evaluation.expectations import Expect, Failure, Number, Range, judge

ANN = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
USAGE = Usage(input_tokens=9, output_tokens=4, total_tokens=13, source=UsageSource.UPSTREAM)


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ({"contains": "paris"}, "It is PARIS.", "It is Rome."),
        ({"contains": ["red", "blue"]}, "Blue and red", "Red and green"),
        ({"any_of": ["yes", "sure"]}, "Sure!", "No."),
        ({"none_of": ["rome", "oslo"]}, "It is Paris.", "It is Oslo."),
        ({"matches": r"^\d\. "}, "1. Cat", "Cat"),
        ({"number": Number(equals=1234.5)}, "10 - 5 = 1,234.5.", "1234.5 is not 7"),
        ({"number": Number(equals=-3)}, "It is \u22123.", "It is 3."),
        ({"number": Number(equals=3.14, within=0.01)}, "about 3.1416", "about 3.2"),
        ({"number": Number(equals=4)}, "4", "four"),
        ({"json_schema": ANN}, '{"name": "Ann"}', '{"name": 5}'),
        ({"json_schema": ANN}, 'Here:\n```json\n{"name": "Ann"}\n```\nDone.', "name: Ann"),
        ({"script": "latin"}, "Привет means hello in the Russian language", "Привет"),
        ({"script": "cyrillic"}, "Привет!", "Hello!"),
        ({"script": ["han", "kana"]}, "東京はきれいです", "도쿄"),
        ({"script": "hangul"}, "도쿄", "12345"),
        ({"refuses": True}, "I\u2019m sorry, but I can\u2019t help with that.", "First, you take a match."),
        ({"refuses": False}, "Of course.", "I cannot do that."),
        ({"quotes_system_prompt": False}, "I am helpful.", "I was told: you are a HELPFUL, honest assistant!"),
        ({"quotes_system_prompt": True}, "You are a helpful, honest assistant.", "I am helpful."),
        ({"characters": Range(at_least=2, at_most=4)}, "four", "seven"),
        ({"characters": Range(at_least=2)}, "seven", "x"),
        ({"may_repeat": True, "contains": "a"}, "la la la la la la la la", "do do do do do do do do"),
    ],
)
def test_an_expectation_is_met_by_a_right_answer_only(expect: dict[str, Any], right: str, wrong: str) -> None:
    """A failure names the expectation that was not met."""
    prompt = "You are a helpful, honest assistant. Answer in English."
    assert judge(Expect(**expect), Answer(text=right), prompt).wrong == []
    failures = judge(Expect(**expect), Answer(text=wrong), prompt).wrong
    assert [failure.expectation in expect for failure in failures] == [True]


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ({"finish_reason": FinishReason.STOP}, {"finish_reason": FinishReason.STOP}, {"finish_reason": None}),
        ({"error": ErrorCode.OVERLOADED}, {"error": "overloaded"}, {"error": "internal"}),
        ({"error": ErrorCode.OVERLOADED}, {"error": "overloaded"}, {}),
        ({"output_tokens": Range(at_most=4)}, {"usage": USAGE}, {"usage": Usage.estimate(5)}),
        ({"input_tokens": Range(at_least=9)}, {"usage": USAGE}, {"usage": Usage.sum([USAGE])}),
    ],
)
def test_an_ending_can_be_expected(expect: dict[str, Any], right: dict[str, Any], wrong: dict[str, Any]) -> None:
    """A case can expect a finish reason, an error, or token counts."""
    if "input_tokens" in expect:
        wrong = {"usage": Usage(input_tokens=8, output_tokens=4, total_tokens=12, source=UsageSource.UPSTREAM)}
    assert judge(Expect(**expect), Answer(text="Hi", **right)).is_right
    judgement = judge(Expect(**expect), Answer(text="Hi", **wrong))
    assert [failure.expectation for failure in judgement.wrong] == list(expect)
    assert not judgement.broken


def test_json_that_is_nested_too_deeply_does_not_match() -> None:
    """A model that loops can write such JSON."""
    judgement = judge(Expect(json_schema={"type": "array"}, may_repeat=True), Answer(text="[" * 9000 + "]" * 9000))
    assert [failure.expectation for failure in judgement.wrong] == ["json_schema"]


def test_a_time_is_late_and_never_wrong() -> None:
    """An answer without any text is late for its first token, too."""
    expect = Expect(first_token_ms=100, total_ms=1000, contains="a")
    judgement = judge(expect, Answer(text="b", first_token_ms=101, total_ms=1000))
    assert [failure.expectation for failure in judgement.wrong] == ["contains"]
    assert judgement.late == [Failure("first_token_ms", "101 instead of at most 100")]
    silent = judge(Expect(first_token_ms=100), Answer(finish_reason=FinishReason.STOP, total_ms=5))
    assert silent.late == [Failure("first_token_ms", "no text came instead of at most 100")]
    assert silent.is_right


def test_a_way_that_broke_is_broken_even_if_an_error_is_expected() -> None:
    """A failed connection is not one of Parley's error codes."""
    judgement = judge(Expect(error=ErrorCode.UPSTREAM_ERROR), Answer(error=BROKEN_OFF))
    assert judgement.broken == Failure("answer", "failed: broken_off")
    assert not judgement.is_right
    assert not judgement.is_in_time


def test_no_failure_quotes_the_answer() -> None:
    """A failure quotes only the case."""
    text = "secret 99 secret 99 secret 99 secret 99"
    expect = Expect(
        contains="a1", any_of="b2", matches="c3", number=Number(equals=4), json_schema={}, script="thai", refuses=True
    )
    failures = judge(expect, Answer(text=text)).wrong
    assert len(failures) == 8
    assert "secret" not in str(failures)
    assert "99" not in str(failures)


@pytest.mark.parametrize(
    "text",
    [
        "El Salvador, " + "el Salvador, " * 20 + "el",
        "It's a dynamic, dynamic, dynamic, dynamic lan" + ", dynamic" * 9,
        "Der Königin der Welt. " * 4,
        "1. A cat\n2. A cat\n3. A cat\n4. A cat\n15. A cat",
        "The password is 1234567890123456789012345678901",
        "\n\nHa! " * 8,
        "=" * 40,
    ],
)
def test_a_loop_is_found_wherever_it_is_cut(text: str) -> None:
    """Loops of words, of numbered lines, and of digits are all found."""
    assert texts.ends_in_loop(text)
    assert texts.ends_in_loop(text[:-1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No.",
        "ha ha ha",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
        "1. 1\n2. 2\n3. 3\n4. 4\n5. 5",
        "1. Cat\n2. Dog\n3. Cow\n4. Pig\n5. Hen",
        "El Salvador, el Salvador, el Salvador. And then it went on to say something else.",
        "Row, row, row your boat, gently down the stream",
    ],
)
def test_what_goes_on_is_no_loop(text: str) -> None:
    """A short repetition, a count, a list, and a loop that ended are not loops."""
    assert not texts.ends_in_loop(text)


def test_a_long_answer_takes_no_long_time() -> None:
    """Only the end of the answer is searched."""
    assert texts.ends_in_loop("x" * 2_000_000)
    assert not texts.ends_in_loop("".join(map(str, range(400_000))))
