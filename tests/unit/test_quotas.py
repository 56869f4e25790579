"""Callers' quotas, measured by a clock that the test moves."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from parley.chat.errors import EXPLANATIONS, ChatError, ErrorCode
from parley.chat.events import NO_USAGE, Usage, UsageSource
from parley.chat.messages import Message, Prompt
from parley.chat.quotas import Allowance, Quotas
from parley.settings import Settings


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """Return a clock that starts at 0."""
    return Clock()


def prompt(caller: str = "a", content: str = "four", most: int = 0) -> Prompt:
    """Return a prompt; Parley counts four bytes as a token."""
    return Prompt(messages=[Message("user", content)], max_output_tokens=most, timeout_s=1, caller=caller)


ANSWERED = Usage(input_tokens=0, output_tokens=0, total_tokens=0, source=UsageSource.UPSTREAM)


def made(clock: Clock, **limits: Any) -> Quotas:
    """Return quotas with these limits; replies usually take eight seconds."""
    return Quotas(Settings(**limits), lambda: 8.0, clock)


async def refused(quotas: Quotas, prompt: Prompt) -> tuple[str | None, int | None]:
    """Return the reason for the refusal and the seconds to wait."""
    with pytest.raises(ChatError) as caught:
        async with quotas.held(prompt, list):
            pass
    assert caught.value.code is ErrorCode.RATE_LIMITED
    return caught.value.reason, caught.value.retry_after_s


async def test_requests_come_back_steadily_for_each_caller_of_its_own(clock: Clock) -> None:
    """A caller that waits as long as it is told is admitted then, and no sooner."""
    quotas = made(clock, requests_per_minute=2)
    for caller in ("a", "a", "b"):
        async with quotas.held(prompt(caller), lambda: [ANSWERED]):
            pass
    assert await refused(quotas, prompt("a")) == ("requests_per_minute", 30)
    clock.seconds += 29
    assert await refused(quotas, prompt("a")) == ("requests_per_minute", 1)
    clock.seconds += 1
    async with quotas.held(prompt("a"), lambda: None):  # reached no upstream, so it does not count
        pass
    async with quotas.held(prompt("a"), lambda: [ANSWERED]):
        pass
    assert await refused(quotas, prompt("a")) == ("requests_per_minute", 30)


async def test_a_request_that_no_model_began_to_answer_counts(clock: Clock) -> None:
    """The upstream has worked on the request."""
    quotas = made(clock, requests_per_minute=1)
    async with quotas.held(prompt("a"), list):
        pass
    assert await refused(quotas, prompt("a")) == ("requests_per_minute", 60)


async def test_a_caller_has_only_so_many_replies_made_at_once(clock: Clock) -> None:
    """A reply that ends, in whatever way, frees a place for another."""
    quotas = made(clock, max_streams_per_caller=2)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(quotas.held(prompt("a"), list))
        assert await refused(quotas, prompt("a")) == ("streams_per_caller", 4)
        async with quotas.held(prompt("b"), list):
            pass
    with pytest.raises(ZeroDivisionError):
        async with quotas.held(prompt("a"), list):
            raise ZeroDivisionError
    async with quotas.held(prompt("a"), list), quotas.held(prompt("a"), list):
        pass


async def test_a_reply_that_ends_makes_place_for_one_and_no_more(clock: Clock) -> None:
    """The caller's other replies still count."""
    quotas = made(clock, max_streams_per_caller=2)
    async with quotas.held(prompt("a"), list):
        async with quotas.held(prompt("a"), list):
            pass
        async with quotas.held(prompt("a"), list):
            assert await refused(quotas, prompt("a")) == ("streams_per_caller", 4)


@pytest.mark.parametrize(
    ("usages", "spent"),
    [
        ([Usage(input_tokens=10, output_tokens=20, total_tokens=30, source=UsageSource.UPSTREAM)], 30),
        ([Usage.estimate(20)], 25),  # 5 for the prompt's 20 bytes, 20 for the reply
        ([NO_USAGE, Usage.estimate(20)], 30),  # an attempt of unknown usage costs its prompt
        ([], 0),
    ],
)
async def test_tokens_are_spent_as_they_were_used(clock: Clock, usages: list[Usage], spent: int) -> None:
    """Parley uses the upstream's count, or else an estimate; nothing is spent if no model was asked."""
    quotas = made(clock, tokens_per_minute=60)
    async with quotas.held(prompt("a", "x" * 20), lambda: usages):
        pass
    async with quotas.held(prompt("b", "x" * 4 * (60 - spent)), list):
        assert await refused(quotas, prompt("c")) == ("tokens_per_minute", 1)


async def test_what_an_answer_may_cost_is_held_until_it_is_known(clock: Clock) -> None:
    """Otherwise simultaneous requests could spend many times the budget."""
    quotas = made(clock, tokens_per_minute=60)
    async with quotas.held(prompt(most=49), lambda: [ANSWERED]), quotas.held(prompt(most=9), list):
        assert await refused(quotas, prompt()) == ("tokens_per_minute", 1)
    async with quotas.held(prompt(most=59), list):
        pass


async def test_of_two_limits_the_one_with_the_longer_wait_is_told(clock: Clock) -> None:
    """A caller that waited only for the shorter one would be refused again."""
    quotas = made(clock, requests_per_minute=1, max_streams_per_caller=1)
    async with quotas.held(prompt(), lambda: [ANSWERED]):
        assert await refused(quotas, prompt()) == ("requests_per_minute", 60)


async def test_tokens_that_were_spent_beyond_the_budget_are_a_debt(clock: Clock) -> None:
    """The cost of an answer is known only at its end."""
    quotas = made(clock, tokens_per_minute=60)
    async with quotas.held(prompt(), lambda: [Usage.estimate(119)]):
        pass
    assert await refused(quotas, prompt()) == ("tokens_per_minute", 61)
    clock.seconds += 61
    async with quotas.held(prompt(), list):
        pass


async def test_an_answer_costs_no_more_than_what_was_held_and_an_hour(clock: Clock) -> None:
    """An upstream's absurd count must not lock a caller out until Parley restarts."""
    quotas = made(clock, tokens_per_minute=60)
    async with quotas.held(prompt(), lambda: [Usage.estimate(1 << 53)]):
        pass
    assert await refused(quotas, prompt()) == ("tokens_per_minute", 3542)
    clock.seconds += 3542
    async with quotas.held(prompt(), list):
        pass


async def test_a_prompt_that_is_larger_than_the_budget_waits_for_all_of_it(clock: Clock) -> None:
    """A wait for more than the whole budget would never end."""
    quotas = made(clock, tokens_per_minute=60)
    async with quotas.held(prompt(), lambda: [Usage.estimate(0)]):
        pass
    assert await refused(quotas, prompt("a", "x" * 1000)) == ("tokens_per_minute", 1)
    clock.seconds += 1
    async with quotas.held(prompt("a", "x" * 1000), list):
        pass


def test_callers_who_may_take_all_again_are_forgotten(clock: Clock) -> None:
    """Otherwise every address that ever called would take up memory."""
    allowance = Allowance(60, clock)
    for caller in range(10_000):
        allowance.take(str(caller))
    clock.seconds += 1
    allowance.take("one more", 60)
    assert len(allowance._left) == 1  # noqa: SLF001
    assert allowance.wait_s("one more") == 1


def test_a_debt_is_remembered_however_many_callers_come(clock: Clock) -> None:
    """Only callers whose bucket is full are evicted."""
    allowance = Allowance(1, clock)
    allowance.take("debtor", 2)
    for number in range(20_001):
        allowance.take(str(number))
    assert allowance.wait_s("debtor") == 120


async def test_a_refusal_says_which_quota_it_is(clock: Clock) -> None:
    """Each quota has its own detail text."""
    details = set()
    for limits in ({"max_streams_per_caller": 1}, {"requests_per_minute": 1}, {"tokens_per_minute": 10}):
        quotas = made(clock, **limits)
        async with quotas.held(prompt(most=9), list):
            with pytest.raises(ChatError) as caught:
                async with quotas.held(prompt(most=9), list):
                    pass
        details.add(caught.value.explanation.detail)
    assert len(details - {EXPLANATIONS[ErrorCode.RATE_LIMITED].detail}) == 3
