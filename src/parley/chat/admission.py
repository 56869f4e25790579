"""Admission: how many replies run at once, how many requests may wait in the queue, and for how long."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from parley.chat.watch import Watch

_LONGEST_RETRY_AFTER_S: Final = 60
_WEIGHT_OF_THE_LATEST: Final = 0.2


class Admission:
    """A fixed number of places for replies, and a first-come, first-served queue for them."""

    def __init__(self, *, places: int, queue: int, timeout_s: float, watch: Watch) -> None:
        """Take the number of places, the size of the queue, the longest wait, and the watch to report to."""
        self._places = places
        self._queue = queue
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(places)
        self._waiting = 0
        self.usual_stay_s = 1.0
        """A moving average of the seconds that replies take."""
        self._watch = watch

    @asynccontextmanager
    async def place(self, end: float, waited: Callable[[], None]) -> AsyncIterator[None]:
        """Hold a place in the block, after a wait until the loop's time `end` at most; then `waited` is called.

        Raises:
            ChatError: if no place is free and the queue is full (`waited` is not called), or the wait times out.
        """
        if self._free.locked() and self._waiting >= self._queue:
            raise self._overloaded("queue_full")
        try:
            await self._enter(end)
        finally:
            waited()
        now = asyncio.get_running_loop().time
        entered = now()
        self._watch.replying(1)
        try:
            yield
        finally:
            self._watch.replying(-1)
            self.usual_stay_s += _WEIGHT_OF_THE_LATEST * (now() - entered - self.usual_stay_s)
            self._free.release()

    async def _enter(self, end: float) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        now = asyncio.get_running_loop().time
        self._wait(1)
        try:
            async with asyncio.timeout_at(min(end, now() + self._timeout_s)):
                await self._free.acquire()
        except TimeoutError:
            is_over = now() >= end
            raise (ChatError(ErrorCode.REQUEST_TIMEOUT) if is_over else self._overloaded("queue_timeout")) from None
        finally:
            self._wait(-1)

    def _wait(self, change: int) -> None:
        self._waiting += change
        self._watch.waiting(change)

    def _overloaded(self, reason: str) -> ChatError:
        """Return the error, with an estimate of the time until all requests in the queue have got a place."""
        wait_s = math.ceil((self._waiting + 1) * self.usual_stay_s / self._places)
        return ChatError(ErrorCode.OVERLOADED, reason=reason, retry_after_s=max(1, min(wait_s, _LONGEST_RETRY_AFTER_S)))
