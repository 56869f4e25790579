"""Owns admission: how many replies are made at once, how many may wait for their turn, and for how long."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LONGEST_RETRY_AFTER_S: Final = 60
_WEIGHT_OF_THE_LATEST: Final = 0.2


class Admission:
    """A number of places, and a queue before them, first come first served."""

    def __init__(self, *, places: int, queue: int, timeout_s: float) -> None:
        """Take the number of places, of those who may wait for one, and the longest wait."""
        self._places = places
        self._queue = queue
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(places)
        self._waiting = 0
        self._usual_stay_s = 1.0

    @asynccontextmanager
    async def place(self, end: float) -> AsyncIterator[None]:
        """Hold a place, waited for until the loop's time `end` at most.

        Raises:
            ChatError: where none is free, and there is no room in the queue or the wait was in vain.
        """
        await self._enter(end)
        now = asyncio.get_running_loop().time
        entered = now()
        try:
            yield
        finally:
            self._usual_stay_s += _WEIGHT_OF_THE_LATEST * (now() - entered - self._usual_stay_s)
            self._free.release()

    async def _enter(self, end: float) -> None:
        now = asyncio.get_running_loop().time
        if self._free.locked() and self._waiting >= self._queue:
            raise self._overloaded()
        self._waiting += 1
        try:
            async with asyncio.timeout_at(min(end, now() + self._timeout_s)):
                await self._free.acquire()
        except TimeoutError:
            raise (ChatError(ErrorCode.REQUEST_TIMEOUT) if now() >= end else self._overloaded()) from None
        finally:
            self._waiting -= 1

    def _overloaded(self) -> ChatError:
        """Name the time in which, as replies go, all who wait now will have had their turn."""
        wait_s = math.ceil((self._waiting + 1) * self._usual_stay_s / self._places)
        return ChatError(ErrorCode.OVERLOADED, retry_after_s=max(1, min(wait_s, _LONGEST_RETRY_AFTER_S)))
