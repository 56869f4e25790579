"""The run: its deadlines against each other."""

from __future__ import annotations

import asyncio

import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.run import Run
from parley.settings import Settings


@pytest.mark.parametrize("is_stop_first", [True, False])
async def test_a_run_that_is_stopped_just_when_its_time_is_over_ends_once(*, is_stop_first: bool) -> None:
    """With one of the two errors, and none of asyncio's."""
    loop = asyncio.get_running_loop()
    unexpected: list[object] = []
    loop.set_exception_handler(lambda _, context: unexpected.append(context))
    end = loop.time() + 0.05
    run = Run(Settings(), end)
    if is_stop_first:
        loop.call_at(end, run.stop, ChatError(ErrorCode.SHUTTING_DOWN))

    async def wait_for_ever() -> None:
        async with run.deadlines():
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
    """It ends by the name that it was stopped with."""
    loop = asyncio.get_running_loop()
    run = Run(Settings(), loop.time() + 60)
    run.stop(ChatError(ErrorCode.SHUTTING_DOWN))
    with pytest.raises(ChatError) as caught:
        async with run.deadlines():
            await loop.create_future()
    assert caught.value.code is ErrorCode.SHUTTING_DOWN


async def test_text_that_waits_is_taken_all_at_once() -> None:
    """Also after the model has ended."""
    run = Run(Settings(), asyncio.get_running_loop().time() + 60)
    run.add("a", 1)
    assert await run.take() == "a"
    run.add("b", 1)
    run.add("cd", 2)
    run.close()
    assert await run.take() == "bcd"
    assert await run.take() is None
    assert run.deltas == 4
