"""Baselines: which changes count as worse, which may be chance, and which cannot be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from parley.evaluation import baseline
from parley.evaluation.answers import Answer
from parley.evaluation.baseline import Baseline, compare, judge_without_baseline, wilson
from parley.evaluation.cases import Case, Suite, SuiteError
from parley.evaluation.expectations import Expect, Failure, Judgement
from parley.evaluation.results import Attempt, CaseResult, Report

if TYPE_CHECKING:
    from pathlib import Path

WRONG = Judgement(wrong=[Failure("contains", "x")])
LATE = Judgement(late=[Failure("total_ms", "x")])
BROKEN = Judgement(broken=Failure("answer", "x"))
RIGHT = Judgement()


def report(*judgements: Judgement | list[Judgement], text: str = "x", only: int | None = None) -> Report:
    """Return the report of a suite with one case per judgement; keep only the first `only` results, if given."""
    lists = [each if isinstance(each, list) else [each] for each in judgements]
    cases = [Case(id=f"c{n}", message="Hi", expect=Expect(contains=text)) for n in range(len(lists))]
    answer = Answer(text="Hi", model="m", first_token_ms=10, total_ms=20)
    results = [
        CaseResult(case, [Attempt(answer, judgement) for judgement in each])
        for case, each in zip(cases, lists, strict=True)
    ]
    return Report(suite=Suite(name="s", cases=cases), results=results[:only], repeat=len(lists[0]), seconds=1)


def verdict(now: Report, then: Report) -> int:
    """Compare a report with an earlier one and return the exit code."""
    return compare(now, Baseline.of(then)).exit_code


def test_wilsons_interval_is_what_the_textbook_says() -> None:
    """The example 81 of 263 is from Newcombe (1998): 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=0.0001)
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 20)[0] == 0
    assert wilson(20, 20)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("lost", "gained", "code"),
    [(0, 0, 0), (3, 0, 0), (4, 0, 1), (5, 1, 0), (7, 1, 1), (8, 2, 0), (9, 2, 1), (6, 6, 0), (0, 20, 0)],
)
def test_a_suite_is_worse_if_certainly_most_of_what_changed_got_worse(lost: int, gained: int, code: int) -> None:
    """Three lost cases may be a rounding difference between machines; four lost cases are not."""
    same = [RIGHT] * 30 + [WRONG] * 20
    then = report(*[RIGHT] * lost, *[WRONG] * gained, *same)
    now = report(*[WRONG] * lost, *[RIGHT] * gained, *same)
    assert verdict(now, then) == code
    reasons = compare(now, Baseline.of(then)).reasons
    assert any("More often wrong" in reason for reason in reasons) == (lost > 0)
    if lost:
        assert f"More often wrong: {', '.join(f'c{n}' for n in range(lost))}." in reasons


@pytest.mark.parametrize(("repeat", "code"), [(6, 0), (7, 1)])
def test_one_case_is_enough_if_it_was_asked_often_enough(repeat: int, code: int) -> None:
    """Seven right attempts followed by seven wrong ones are enough; six are not."""
    now, then = report([WRONG] * repeat, [RIGHT] * repeat), report([RIGHT] * repeat, [RIGHT] * repeat)
    assert verdict(now, then) == code
    reasons = compare(now, Baseline.of(then)).reasons
    assert ("Certainly more often wrong: c0." in reasons) == (code == 1)


def test_late_answers_are_judged_apart_from_wrong_ones() -> None:
    """Four late answers are worse but not reported as wrong; two late and two wrong answers are not worse."""
    then = report(*[RIGHT] * 10)
    assert verdict(report(*[LATE] * 4, *[RIGHT] * 6), then) == 1
    late = compare(report(*[LATE] * 4, *[RIGHT] * 6), Baseline.of(then)).reasons
    assert late[0] == "More often late: c0, c1, c2, c3."
    assert verdict(report(LATE, LATE, WRONG, WRONG, *[RIGHT] * 6), then) == 0


def test_a_missing_case_is_worse() -> None:
    """A case that was left out on purpose does not count as missing."""
    then = report(*[RIGHT] * 5)
    now = compare(report(*[RIGHT] * 4), Baseline.of(then))
    assert (now.exit_code, now.reasons) == (1, ["Missing from the suite: c4."])
    assert verdict(report(*[RIGHT] * 5, only=2), then) == 0


def test_a_new_or_changed_case_cannot_be_judged() -> None:
    """A new baseline belongs in the same commit as the case."""
    then = report(RIGHT)
    now = compare(report(RIGHT, RIGHT), Baseline.of(then))
    assert (now.exit_code, now.reasons) == (2, ["New or changed cases, for which a new baseline is needed: c1."])
    assert verdict(report(RIGHT, text="y"), then) == 2
    assert verdict(report(WRONG, text="y"), then) == 2


def test_what_is_broken_cannot_be_judged_and_is_not_wrong() -> None:
    """The suite is still worse if the other cases are worse by themselves."""
    then = report(*[RIGHT] * 10)
    now = compare(report(*[BROKEN] * 10), Baseline.of(then))
    assert now.exit_code == 2
    assert now.reasons == [f"Could not be judged: {', '.join(f'c{n}' for n in range(10))}."]
    assert verdict(report(BROKEN, *[WRONG] * 9), then) == 1


@pytest.mark.parametrize(
    ("judgements", "code"),
    [([RIGHT, RIGHT], 0), ([RIGHT, WRONG], 1), ([RIGHT, LATE], 1), ([RIGHT, BROKEN], 2), ([WRONG, BROKEN], 1)],
)
def test_without_a_baseline_all_have_to_pass(judgements: list[Judgement], code: int) -> None:
    """Late answers fail the suite, too."""
    assert judge_without_baseline(report(*judgements)).exit_code == code


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The file has one line per value."""
    path = tmp_path / "baseline.json"
    kept = Baseline.of(report(RIGHT, WRONG))
    baseline.write(str(path), kept)
    assert baseline.read(str(path)) == kept
    assert (kept.model, kept.pass_rate, list(kept.cases)) == ("m", 0.5, ["c0", "c1"])
    assert '\n      "right": 0,\n' in path.read_text()


def test_another_model_than_the_baselines_is_told() -> None:
    """Operators compare two models this way."""
    kept = Baseline.of(report(RIGHT))
    other = Answer(text="Hi", model="n")
    now = report(RIGHT)
    now.results[0].attempts[:] = [Attempt(other, RIGHT)]
    assert compare(now, kept).reasons == ["The baseline is from the model m, these answers are from n."]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"{}", "is not a baseline"), (b'{"suite": "\xff"}', "is not a baseline")],
)
def test_a_file_that_is_no_baseline_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    """The error says whether the file is unreadable or not a baseline."""
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SuiteError, match=message):
        baseline.read(str(path))
