"""The baseline: earlier results, against which new results are judged."""

from __future__ import annotations

from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from parley.evaluation.cases import SuiteError

if TYPE_CHECKING:
    from parley.evaluation.results import CaseResult, Report

Z: Final = 1.96
"""The z-score for a 95% interval."""
_Z_OF_EACH: Final = 2.58
"""The z-score for a 99% interval: among many cases, one in twenty would lie outside a 95% interval by chance."""

_Count = Annotated[int, Meta(ge=0)]
_Share = tuple[int, int]
"""A number of answers, and the number out of which they are."""


class CaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one case; tokens are a mean, and milliseconds are medians."""

    hash: str
    judged: Annotated[int, Meta(ge=1)]
    right: _Count
    in_time: _Count
    output_tokens: float | None
    first_token_ms: float | None
    total_ms: float | None


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one run of a suite."""

    suite: str
    suite_hash: str
    model: str
    parley_version: str
    """The version of the Parley that ran the evaluation."""
    pass_rate: float
    cases: dict[str, CaseRecord]

    @classmethod
    def of(cls, report: Report) -> Baseline:
        """Return the baseline for a report, in which no answer may be broken."""
        return cls(
            suite=report.suite.name,
            suite_hash=report.suite.hash,
            model=report.model,
            parley_version=version("parley"),
            pass_rate=round(report.right / report.judged, 4),
            cases={result.case.id: _record(result) for result in report.results},
        )


def _record(result: CaseResult) -> CaseRecord:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 1)

    return CaseRecord(
        hash=result.case.hash,
        judged=len(result.judged),
        right=result.right,
        in_time=result.in_time,
        output_tokens=rounded(result.output_tokens),
        first_token_ms=rounded(result.first_token_ms),
        total_ms=rounded(result.total_ms),
    )


def read(path: str) -> Baseline:
    """Read a baseline, or raise `SuiteError` if the file cannot be read or is not one."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Baseline)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SuiteError(f"{path}: is not a baseline: {error}.") from error


def write(path: str, baseline: Baseline) -> None:
    """Write a baseline with one value per line, so that changes to it can be reviewed."""
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(baseline), indent=2) + b"\n")


def wilson(successes: float, of: float, z: float = Z) -> tuple[float, float]:
    """Return Wilson's score interval for the share of `successes` in `of`."""
    if not of:
        return 0.0, 1.0
    share, spread = successes / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / of + spread / of / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


class Verdict(msgspec.Struct, frozen=True):
    """Whether the answers are worse, whether that could be judged, and why."""

    is_worse: bool
    is_judged: bool
    reasons: list[str]

    @property
    def exit_code(self) -> int:
        """1 if the answers are worse, 2 if that could not be judged, otherwise 0."""
        if self.is_worse:
            return 1
        return 0 if self.is_judged else 2


def judge_without_baseline(report: Report) -> Verdict:
    """Judge results without a baseline: each answer must be right and in time."""
    wrong = [result.case.id for result in report.results if result.right < len(result.judged)]
    late = [result.case.id for result in report.results if result.in_time < len(result.judged)]
    reasons = _named(("Wrong", wrong), ("Late", late), ("Could not be judged", _broken(report)))
    return Verdict(bool(wrong or late), not report.broken, reasons)


def compare(report: Report, baseline: Baseline) -> Verdict:
    """Judge results against a baseline.

    They are worse if a case of the baseline is missing from the suite, if one case is significantly worse (its 99%
    interval lies below that of the baseline), or if, of all cases that changed, significantly more than half got worse
    (the 95% interval of their share lies above one half: a sign test). The last two rules apply to rightness and to
    time separately.
    """
    missing = sorted(baseline.cases.keys() - {case.id for case in report.suite.cases})
    same: list[tuple[CaseResult, CaseRecord]] = []
    other: list[str] = []
    for result in report.results:
        before = baseline.cases.get(result.case.id)
        if before is None or before.hash != result.case.hash:
            other.append(result.case.id)
        elif result.judged:
            same.append((result, before))
    is_wrong, on_rightness = _changes(
        [(now.case.id, (now.right, len(now.judged)), (then.right, then.judged)) for now, then in same],
        ("wrong", "right"),
    )
    is_late, on_time = _changes(
        [(now.case.id, (now.in_time, len(now.judged)), (then.in_time, then.judged)) for now, then in same],
        ("late", "in time"),
    )
    broken = _broken(report)
    reasons = [
        *_named(("Missing from the suite", missing)),
        *on_rightness,
        *on_time,
        *_named(("New or changed cases, for which a new baseline is needed", other), ("Could not be judged", broken)),
    ]
    if report.model not in {baseline.model, "none"}:
        reasons.append(f"The baseline is from the model {baseline.model}, these answers are from {report.model}.")
    return Verdict(bool(missing) or is_wrong or is_late, not broken and not other, reasons)


def _changes(cases: list[tuple[str, _Share, _Share]], words: tuple[str, str]) -> tuple[bool, list[str]]:
    """Return whether these cases are worse than in the baseline, and why; `words` name a worse and a better answer."""
    worse, better = words
    lost = [name for name, now, then in cases if now[0] / now[1] < then[0] / then[1]]
    gained = [name for name, now, then in cases if now[0] / now[1] > then[0] / then[1]]
    certain = [name for name, now, then in cases if wilson(*now, _Z_OF_EACH)[1] < wilson(*then, _Z_OF_EACH)[0]]
    reasons = _named(
        (f"Certainly more often {worse}", certain), (f"More often {worse}", lost), (f"More often {better}", gained)
    )
    low, high = wilson(len(lost), len(lost) + len(gained))
    if lost:
        verdict = "most got worse" if low > 1 / 2 else "this may be chance"
        reasons.append(
            f"Of {len(lost) + len(gained)} cases that changed, {len(lost)} are more often {worse} "
            f"(95% interval {low:.0%} to {high:.0%}): {verdict}."
        )
    return bool(certain) or low > 1 / 2, reasons


def _broken(report: Report) -> list[str]:
    return [result.case.id for result in report.results if result.broken]


def _named(*lists: tuple[str, list[str]]) -> list[str]:
    return [f"{title}: {', '.join(names)}." for title, names in lists if names]
