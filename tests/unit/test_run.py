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
    wait = asyncio.ensure_future(run.within(loop.create_future()))
    await asyncio.sleep(0)
    if not is_stop_first:
        loop.call_at(end, run.stop, ChatError(ErrorCode.SHUTTING_DOWN))
    with pytest.raises(ChatError) as caught:
        await wait
    assert caught.value.code in {ErrorCode.SHUTTING_DOWN, ErrorCode.REQUEST_TIMEOUT}
    assert unexpected == []


async def test_a_run_that_was_stopped_does_not_begin_to_wait() -> None:
    """Nor does it find room."""
    run = Run(Settings(), asyncio.get_running_loop().time() + 60)
    run.stop(ChatError(ErrorCode.SHUTTING_DOWN))
    for wait in (run.within(asyncio.get_running_loop().create_future()), run.room()):
        with pytest.raises(ChatError) as caught:
            await wait
        assert caught.value.code is ErrorCode.SHUTTING_DOWN
