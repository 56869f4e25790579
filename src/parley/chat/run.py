"""Owns a run, what service and model share about one reply: its deadlines, the room for its text, how it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason, Usage, UsageSource

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from parley.settings import Settings

T = TypeVar("T")

# How far the model may be ahead of the client; a piece weighs what openai-agents makes of it besides its characters.
_ROOM: Final = 131_072
_WEIGHT_OF_A_PIECE: Final = 1024

# The usage comes right after the finish reason, or never.
_LAST_WORD_TIMEOUT_S: Final = 1.0


class Run:
    """One reply, or one attempt at it, between the service that wants it and the model that gives it.

    openai-agents has no place for a finish reason, queues text without bound, and drops what is queued when a model
    raises after its first text. So the model notes here how it ends, and waits here for what it reads and for room; the
    deadlines hold wherever the client is.
    """

    def __init__(self, settings: Settings, end: float) -> None:
        """Begin; `end` is the loop's time by which all must be over."""
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.failure: ChatError | None = None
        self.deltas = 0
        self.attempts = 0
        self._now = asyncio.get_running_loop().time
        self._end = end
        self._next_text_end = end
        self._first_token_timeout_s = settings.first_token_timeout_s
        self._idle_timeout_s = settings.idle_timeout_s
        self._wait: asyncio.Timeout | None = None
        self._stopped: ChatError | None = None
        self._untaken = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    def begin(self) -> None:
        """Note that the model is about to be asked, for the first time or again; its text is awaited from the first."""
        if not self.attempts:
            self._next_text_end = self._now() + self._first_token_timeout_s
        self.attempts += 1
        self.usage = None

    def has_time(self, wait_s: float) -> bool:
        """Tell whether text may still come in time after such a wait."""
        return self._stopped is None and self._now() + wait_s < min(self._end, self._next_text_end)

    def best_usage(self) -> Usage:
        """Return the upstream's usage; failing that, the deltas seen as an estimate; failing that, nothing known."""
        if self.usage is not None:
            return self.usage
        if self.deltas:
            return Usage(output_tokens=self.deltas, source=UsageSource.ESTIMATE)
        return Usage()

    async def within(self, wait: Awaitable[T]) -> T:
        """Wait for something of the upstream's, until the time for the next text is over.

        Raises:
            ChatError: by the name of the deadline that passed, or that the run was stopped with.
        """
        return await self._until(min(self._end, self._next_text_end), wait)

    def saw(self, text: str) -> None:
        """Note a delta, which moves the deadline for the next."""
        self.deltas += 1
        if self.finish_reason is None:
            self._next_text_end = self._now() + self._idle_timeout_s
        self._untaken += _WEIGHT_OF_A_PIECE + len(text)

    def finish(self, reason: FinishReason) -> None:
        """Note why the model has finished; what may follow is not waited for long."""
        self.finish_reason = reason
        self._next_text_end = self._now() + _LAST_WORD_TIMEOUT_S

    async def room(self) -> None:
        """Wait until the client has taken enough of the text; the upstream is not silent meanwhile, just not read.

        Raises:
            ChatError: as `within` does.
        """
        if self._stopped is not None or self._now() >= self._end:
            raise self._expiry()
        if self._untaken > _ROOM:
            self._has_room.clear()
            await self._until(self._end, self._has_room.wait())
            self._next_text_end = self._now() + self._idle_timeout_s

    def took(self, text: str) -> None:
        """Note that the client has taken a text."""
        self._untaken -= _WEIGHT_OF_A_PIECE + len(text)
        if self._untaken <= _ROOM:
            self._has_room.set()

    def stop(self, error: ChatError) -> None:
        """End the run as soon as may be, with this error; text that is there already still goes out."""
        self._stopped = error
        if self._wait is not None:
            with suppress(RuntimeError):  # its own deadline is passing at this very moment
                self._wait.reschedule(self._now())

    async def _until(self, deadline: float, wait: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(deadline if self._stopped is None else self._now()) as self._wait:
                return await wait
        except TimeoutError:
            if self._wait is None or not self._wait.expired():
                raise
            raise self._expiry() from None
        finally:
            self._wait = None

    def _expiry(self) -> ChatError:
        if self._stopped is not None:
            return self._stopped
        if self._now() >= self._end:
            return ChatError(ErrorCode.REQUEST_TIMEOUT)
        if not self.deltas:
            return ChatError(ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT)
        return ChatError(ErrorCode.UPSTREAM_IDLE_TIMEOUT)
