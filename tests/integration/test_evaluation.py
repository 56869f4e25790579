"""The evaluation of a Parley on the scripted upstream: our contract suite, and the three kinds of failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from parley.evaluation.baseline import judge_without_baseline
from parley.evaluation.cases import Case, Suite, load
from parley.evaluation.expectations import Expect, Range
from parley.evaluation.results import Report, run
from parley.testing.upstream import answer, in_turn, respond
from tests.support.evals import CONTRACT, SETTINGS, echo_or_fault
from tests.support.running import running

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs


async def evaluate(client: httpx.AsyncClient, suite: Suite, *, repeat: int = 1, jobs: int = 4) -> Report:
    """Run a suite."""
    told: list[None] = []
    results = await run(suite, suite.cases, client, repeat=repeat, jobs=jobs, tell=lambda: told.append(None))
    assert len(told) == len(suite.cases) * repeat
    return Report(suite=suite, results=results, repeat=repeat, seconds=1.0)


def one(expect: Expect) -> Suite:
    """Return a suite with a single case."""
    return Suite(name="one", cases=[Case(id="only", message="Hi", expect=expect)])


async def contract_verdict(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs, **changes: Any
) -> tuple[int, set[str]]:
    """Run the contract suite on a Parley with these settings; return the exit code and the failed cases."""
    upstream.script = echo_or_fault
    async with running(make_settings(**{**SETTINGS, **changes}), logs) as client:
        report = await evaluate(client, load(CONTRACT))
    failed = {result.case.id for result in report.results if result.failures}
    return judge_without_baseline(report).exit_code, failed


async def test_each_case_of_the_contract_suite_passes(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The contract suite does not depend on the model."""
    assert await contract_verdict(make_settings, upstream, logs) == (0, set())


@pytest.mark.parametrize(
    ("changes", "failed"),
    [({"system_prompt": "Answer in French."}, {"prompt"}), ({"temperature": 2.0}, {"sampling"})],
    ids=["the prompt", "the sampling"],
)
async def test_a_wrong_setting_turns_the_contract_suite_red(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    logs: Logs,
    changes: dict[str, Any],
    failed: set[str],
) -> None:
    """Only the case that covers the setting fails."""
    assert await contract_verdict(make_settings, upstream, logs, **changes) == (1, failed)


async def test_what_the_model_said_how_long_it_took_and_what_broke_are_counted_apart(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Of a right answer, a wrong answer and an upstream failure, only the two answers are judged."""
    upstream.script = in_turn(answer("Paris"), answer("Rome"), respond(500, {}))
    report = await evaluate(client, one(Expect(contains="paris", first_token_ms=60_000)), repeat=3, jobs=1)
    (result,) = report.results
    assert (result.right, len(result.judged), result.in_time, result.broken) == (1, 2, 2, 1)
    assert [tuple(failure) for failure in result.failures] == [
        ("contains", "is not all found: paris"),
        ("answer", "failed: upstream_error"),
    ]
    assert result.passes_all(1) == 0.5
    assert result.passes_all(2) == 0
    assert result.passes_all(3) is None
    assert result.output_tokens == 3


async def test_a_late_answer_is_not_a_wrong_one(client: httpx.AsyncClient) -> None:
    """Every answer takes more than 0 ms."""
    report = await evaluate(client, one(Expect(contains="hello", total_ms=0, first_token_ms=0)))
    (result,) = report.results
    assert (result.right, result.in_time, result.broken) == (1, 0, 0)
    assert judge_without_baseline(report).exit_code == 1


@pytest.mark.parametrize(
    ("script", "expect", "detail"),
    [
        (answer(finish_reason="length"), Expect(contains="a"), "all tokens were used up before any text"),
        (answer("a", usage=None), Expect(input_tokens=Range(at_most=5)), "the upstream did not count them"),
        (respond(401, {}), Expect(contains="a"), "failed: upstream_auth"),
        (answer("a", finish_reason=None), Expect(contains="a"), "failed: upstream_truncated"),
    ],
    ids=["a budget eaten", "no usage", "a refusal", "an error chunk"],
)
async def test_what_the_model_did_not_do_is_not_held_against_it(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, script: Script, expect: Expect, detail: str
) -> None:
    """Such an answer cannot be judged, which has its own exit code."""
    upstream.script = script
    report = await evaluate(client, one(expect))
    (result,) = report.results
    assert [failure.detail for failure in result.failures] == [detail]
    assert (result.right, len(result.judged), result.broken) == (0, 0, 1)
    assert judge_without_baseline(report).exit_code == 2


async def test_each_answer_has_the_correlation_id_that_the_log_has(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Failed answers have it, too."""
    upstream.script = in_turn(answer("Hi"), respond(500, {}))
    report = await evaluate(client, one(Expect(contains="hi")), repeat=2, jobs=1)
    ids = [attempt.answer.correlation_id for attempt in report.results[0].attempts]
    assert len(set(ids)) == 2
    assert all(id_ is not None and id_ in logs.getvalue() for id_ in ids)


async def test_no_more_questions_are_asked_at_once_than_allowed(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Fewer are not asked, either."""
    three = asyncio.Barrier(3)
    at_once: list[int] = []
    asked = 0

    async def script(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        at_once.append(asked)
        await three.wait()  # fewer would wait forever
        await answer("Hi")(exchange)
        asked -= 1

    upstream.script = script
    await evaluate(client, one(Expect(contains="hi")), repeat=12, jobs=3)
    assert len(at_once) == 12
    assert max(at_once) == 3
