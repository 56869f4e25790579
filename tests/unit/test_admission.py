"""Admission: the error and the waiting time for a prompt that gets no place."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import anyio
import pytest

from parley.chat.admission import Admission
from parley.chat.errors import ChatError, ErrorCode
from parley.telemetry.metrics import metrics

LONG_S = 1_000_000


def admission(*, places: int, queue: int, timeout_s: float = LONG_S) -> Admission:
    """Return an Admission whose metrics no test reads."""
    return Admission(places=places, queue=queue, timeout_s=timeout_s, watch=metrics())


async def stay(admission: Admission, seconds: float) -> None:
    """Wait for a place, then hold it for this many seconds."""
    async with admission.place(asyncio.get_running_loop().time() + LONG_S, lambda: None):
        await asyncio.sleep(seconds)


async def refused(admission: Admission, timeout_s: float = LONG_S) -> tuple[ErrorCode, str | None, int | None]:
    """Return the code, the reason, and the seconds to wait."""
    with pytest.raises(ChatError) as caught:
        async with admission.place(asyncio.get_running_loop().time() + timeout_s, lambda: None):
            pass
    return caught.value.code, caught.value.reason, caught.value.retry_after_s


@pytest.mark.parametrize(
    ("usual_s", "places", "waiting", "retry_after_s"),
    [(7.9, 2, 3, 16), (7.9, 2, 0, 4), (8.9, 4, 2, 7), (0.001, 1, 1, 1), (100, 1, 1, 60)],
)
async def test_a_refusal_names_the_time_in_which_all_who_wait_have_had_their_turn(
    usual_s: float, places: int, waiting: int, retry_after_s: int
) -> None:
    """The time depends on recent reply times and the number of places, and is 1 to 60 seconds."""
    full = admission(places=places, queue=waiting)
    for _ in range(60):
        await stay(full, usual_s)
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(anyio.create_task_group())
        for _ in range(places + waiting):
            group.start_soon(stay, full, usual_s)
        await anyio.wait_all_tasks_blocked()
        assert await refused(full) == (ErrorCode.OVERLOADED, "queue_full", retry_after_s)
        group.cancel_scope.cancel()


async def test_a_wait_in_vain_says_whose_time_was_over() -> None:
    """The queue timeout and the request's own timeout give different errors."""
    full = admission(places=1, queue=1, timeout_s=5)
    async with anyio.create_task_group() as group:
        group.start_soon(stay, full, LONG_S / 2)
        await anyio.wait_all_tasks_blocked()
        assert (await refused(full))[:2] == (ErrorCode.OVERLOADED, "queue_timeout")
        assert await refused(full, timeout_s=1) == (ErrorCode.REQUEST_TIMEOUT, None, None)
        group.cancel_scope.cancel()
