"""The run: its deadlines, and the total usage of its model calls."""

from __future__ import annotations

import asyncio

import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import NO_USAGE, Usage, UsageSource
from parley.chat.run import Deadlines, Run
from parley.settings import Settings
from tests.support.attempts import new_attempt


def new_run(end: float, settings: Settings | None = None) -> Run:
    """Return a new run."""
    return Run(settings or Settings(), end, 100)


@pytest.mark.parametrize("is_stop_first", [True, False])
async def test_a_run_that_is_stopped_just_when_its_time_is_over_ends_once(*, is_stop_first: bool) -> None:
    """The run raises one of the two errors, and asyncio reports no unexpected one."""
    loop = asyncio.get_running_loop()
    unexpected: list[object] = []
    loop.set_exception_handler(lambda _, context: unexpected.append(context))
    end = loop.time() + 0.05
    run = new_run(end)
    if is_stop_first:
        loop.call_at(end, run.stop, ChatError(ErrorCode.SHUTTING_DOWN))

    async def wait_for_ever() -> None:
        async with Deadlines(run).limit():
            await loop.create_future()

    wait = asyncio.ensure_future(wait_for_ever())
    await asyncio.sleep(0)
    if not is_stop_first:
        loop.call_at(end, run.stop, ChatError(ErrorCode.SHUTTING_DOWN))
    with pytest.raises(ChatError) as caught:
        await wait
    assert caught.value.code in {ErrorCode.SHUTTING_DOWN, ErrorCode.REQUEST_TIMEOUT}
    assert unexpected == []


async def test_a_run_that_was_stopped_does_not_begin_to_wait() -> None:
    """The run ends with the error that it was stopped with."""
    loop = asyncio.get_running_loop()
    run = new_run(loop.time() + 60)
    run.stop(ChatError(ErrorCode.SHUTTING_DOWN))
    with pytest.raises(ChatError) as caught:
        async with Deadlines(run).limit():
            await loop.create_future()
    assert caught.value.code is ErrorCode.SHUTTING_DOWN


async def test_a_deadline_that_passes_just_when_a_wait_ends_interrupts_the_next_wait() -> None:
    """The deadline still counts, although the first wait ended in time."""
    loop = asyncio.get_running_loop()
    run = new_run(loop.time() + 60)
    deadlines = Deadlines(run)
    async with deadlines.limit():
        run.stop(ChatError(ErrorCode.SHUTTING_DOWN))
    interrupted: list[ErrorCode] = []
    deadlines.start(lambda error: interrupted.append(error.code))
    deadlines.stop()
    assert interrupted == [ErrorCode.SHUTTING_DOWN]


@pytest.mark.parametrize(("silent_s", "is_in_time"), [(9, True), (11, False)])
async def test_a_client_that_does_not_read_does_not_make_the_upstream_late(
    *, silent_s: float, is_in_time: bool
) -> None:
    """The idle timeout starts when the client asks for the next text."""
    loop = asyncio.get_running_loop()
    run = new_run(loop.time() + 1000, Settings(idle_timeout_s=10))
    deadlines = Deadlines(run)
    interrupted: list[ErrorCode] = []
    deadlines.start(lambda error: interrupted.append(error.code))
    deadlines.is_waiting = False
    deadlines.renew()
    await asyncio.sleep(100)
    deadlines.renew()
    deadlines.is_waiting = True
    await asyncio.sleep(silent_s)
    deadlines.stop()
    assert interrupted == ([] if is_in_time else [ErrorCode.UPSTREAM_IDLE_TIMEOUT])


async def test_a_request_ends_in_time_even_if_its_client_does_not_read() -> None:
    """The request timeout runs even while Parley is not waiting for the upstream."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(new_run(loop.time() + 50))
    interrupted: list[ErrorCode] = []
    deadlines.start(lambda error: interrupted.append(error.code))
    deadlines.is_waiting = False
    await asyncio.sleep(60)
    deadlines.stop()
    assert interrupted == [ErrorCode.REQUEST_TIMEOUT]


def counted(read: int, written: int) -> Usage:
    """Return usage that an upstream counted."""
    return Usage(input_tokens=read, output_tokens=written, total_tokens=read + written, source=UsageSource.UPSTREAM)


@pytest.mark.parametrize(
    ("usages", "total"),
    [
        ([], NO_USAGE),
        ([Usage.estimate(3)], Usage.estimate(3)),
        ([counted(1, 2), counted(10, 20)], counted(11, 22)),
        ([counted(1, 2), Usage.estimate(3)], Usage.estimate(5)),
        ([counted(1, 2), NO_USAGE], Usage.estimate(2)),
        ([NO_USAGE, NO_USAGE], NO_USAGE),
    ],
)
async def test_the_usage_of_a_reply_is_that_of_all_its_model_calls(usages: list[Usage], total: Usage) -> None:
    """If a call lacks counts, the sum estimates the output only; just the last attempt of each call counts."""
    run = new_run(0)
    for number, usage in enumerate(usages):
        failed, last = new_attempt(number), new_attempt(number)
        failed.usage, last.usage = counted(100, 100), None if usage is NO_USAGE else usage
        run.attempts += [failed, last]
    assert run.usage() == total


async def test_a_model_call_may_answer_with_the_tokens_that_the_calls_before_it_have_left() -> None:
    """At least one token is left, so that the upstream can report that it cut the answer short."""
    run = new_run(0)
    left = [run.output_tokens_left]
    for number, written in enumerate((30, 100)):
        run.attempts.append(new_attempt(number))
        run.attempts[-1].usage = counted(1, written)
        left.append(run.output_tokens_left)
    assert left == [100, 70, 1]


async def test_a_retry_waits_for_the_first_token_as_long_as_is_left() -> None:
    """The timeout also applies if Parley has read the answer of an earlier attempt."""
    run = new_run(asyncio.get_running_loop().time() + 1000, Settings(first_token_timeout_s=10))
    deadlines = Deadlines(run)
    deadlines.is_waiting = False
    with pytest.raises(ChatError) as caught:
        async with deadlines.limit():
            await asyncio.sleep(100)
    assert caught.value.code is ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT
