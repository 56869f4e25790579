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


async def test_a_model_that_is_far_ahead_waits_until_the_client_has_taken_the_text() -> None:
    """16 KiB ahead; what waits is taken all at once."""
    run = Run(Settings(), asyncio.get_running_loop().time() + 60)
    is_full = []
    for text in ("x" * 16_384, "y"):
        run.add(text, 1)
        is_full.append(run.is_full)
    assert is_full == [False, True]
    room = asyncio.ensure_future(run.room())
    await asyncio.sleep(1)
    assert not room.done()
    assert await run.take() == "x" * 16_384 + "y"
    await room
    assert not run.is_full


@pytest.mark.parametrize(("silent_s", "is_in_time"), [(9, True), (11, False)])
async def test_a_model_that_waits_for_the_client_is_not_silent(*, silent_s: float, is_in_time: bool) -> None:
    """The idle timeout restarts when the client has taken the waiting text."""
    run = Run(Settings(idle_timeout_s=10), asyncio.get_running_loop().time() + 1000)

    async def answer() -> None:
        async with run.deadlines():
            run.add("x" * 20_000, 1)
            await run.room()
            await asyncio.sleep(silent_s)

    answering = asyncio.ensure_future(answer())
    await asyncio.sleep(100)
    await run.take()
    if is_in_time:
        await answering
    else:
        with pytest.raises(ChatError) as caught:
            await answering
        assert caught.value.code is ErrorCode.UPSTREAM_IDLE_TIMEOUT
