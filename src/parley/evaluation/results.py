"""The results of each case, and of the suite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import comb
from statistics import fmean, median
from typing import TYPE_CHECKING

import msgspec

from parley.evaluation.answers import Answer, ask
from parley.evaluation.cases import Case, Suite
from parley.evaluation.expectations import Failure, Judgement, judge

if TYPE_CHECKING:
    import httpx


class Attempt(msgspec.Struct, frozen=True):
    """One answer to a case, and the judgement on it."""

    answer: Answer
    judgement: Judgement


class CaseResult(msgspec.Struct, frozen=True):
    """All answers to one case. Broken answers count in none of the rates."""

    case: Case
    attempts: list[Attempt]

    @property
    def judged(self) -> list[Attempt]:
        """The answers by which the model can be judged."""
        return [attempt for attempt in self.attempts if not attempt.judgement.broken]

    @property
    def broken(self) -> int:
        """The number of answers that cannot be judged."""
        return len(self.attempts) - len(self.judged)

    @property
    def right(self) -> int:
        """The number of answers that are as expected."""
        return sum(attempt.judgement.is_right for attempt in self.attempts)

    @property
    def in_time(self) -> int:
        """The number of answers that came in time."""
        return sum(attempt.judgement.is_in_time for attempt in self.attempts)

    @property
    def failures(self) -> list[Failure]:
        """The failures of all answers, without duplicates."""
        found: dict[Failure, None] = {}
        for attempt in self.attempts:
            judgement = attempt.judgement
            broken = [judgement.broken] if judgement.broken else []
            found |= dict.fromkeys([*broken, *judgement.wrong, *judgement.late])
        return list(found)

    def passes_all(self, k: int) -> float | None:
        """Return pass^k, the estimated chance that k answers are all right; `None` if there are fewer than k answers.

        This is tau-bench's unbiased estimate: of all ways to choose k of the n answers, the share with only right ones.
        """
        n = len(self.judged)
        return comb(self.right, k) / comb(n, k) if n >= k else None

    @property
    def output_tokens(self) -> float | None:
        """The mean number of output tokens, over the answers for which it is known."""
        return _over(fmean, [attempt.answer.usage.output_tokens for attempt in self.judged])

    @property
    def first_token_ms(self) -> float | None:
        """The median time to the first token."""
        return _over(median, [attempt.answer.first_token_ms for attempt in self.judged])

    @property
    def total_ms(self) -> float | None:
        """The median time for the whole answer."""
        return _over(median, [attempt.answer.total_ms for attempt in self.judged])


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The results of all cases that were run."""

    suite: Suite
    results: list[CaseResult]
    repeat: int
    seconds: float

    @property
    def model(self) -> str:
        """The names of the models that answered, or `none`."""
        attempts = [attempt for result in self.results for attempt in result.attempts]
        return ", ".join(sorted({attempt.answer.model for attempt in attempts if attempt.answer.model})) or "none"

    @property
    def right(self) -> int:
        """The number of answers that are as expected."""
        return sum(result.right for result in self.results)

    @property
    def judged(self) -> int:
        """The number of answers by which the model can be judged."""
        return sum(len(result.judged) for result in self.results)

    @property
    def late(self) -> int:
        """The number of answers that came too late."""
        return self.judged - sum(result.in_time for result in self.results)

    @property
    def broken(self) -> int:
        """The number of answers that cannot be judged."""
        return sum(result.broken for result in self.results)

    @property
    def passes_all(self) -> float | None:
        """The mean of the cases' pass^k."""
        return _over(fmean, [result.passes_all(self.repeat) for result in self.results])

    def tokens(self, kind: str) -> int:
        """Return the sum of `input_tokens` or `output_tokens` over all answers; unknown counts are left out."""
        return sum(getattr(a.answer.usage, kind) or 0 for result in self.results for a in result.attempts)


async def run(  # noqa: PLR0913  # half of them are keywords
    suite: Suite, cases: list[Case], client: httpx.AsyncClient, *, repeat: int, jobs: int, tell: Callable[[], object]
) -> list[CaseResult]:
    """Ask each case `repeat` times, with up to `jobs` requests at once; call `tell` after each answer."""
    results = [CaseResult(case, []) for case in cases]
    waiting = iter([result for _ in range(repeat) for result in results])

    async def work() -> None:
        for result in waiting:  # all workers share this iterator
            answer = await ask(client, result.case.request())
            result.attempts.append(Attempt(answer, judge(result.case.expect, answer, suite.system_prompt)))
            tell()

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(work())
    return results


def _over(measure: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return measure(known) if known else None
