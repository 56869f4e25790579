"""Owns a run, what service and model share about one reply: its text on the way, its deadlines, how it ends."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import NO_USAGE, FinishReason, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from parley.settings import Settings

# Characters that the model may be ahead of the client.
_ROOM: Final = 16_384

# After a finish reason that can be the last word, only the usage may follow; some upstreams then stay silent.
_LAST_WORD_TIMEOUT_S: Final = 5.0


class Run:
    """One reply, or one attempt at it, between the model that gives it and the service that wants it.

    Text goes this way and not through openai-agents, whose queue costs more than all else that a text meets, has no
    bound, has no place for a finish reason, and is dropped when a model raises. What is there is taken all at once:
    a client that is slow gets fewer, longer texts.
    """

    def __init__(self, settings: Settings, end: float) -> None:
        """Begin; `end` is the loop's time by which all must be over."""
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.failure: BaseException | None = None
        self.deltas = 0
        self.attempts = 0
        self.is_answered = False
        self.reading: asyncio.Task[None] | None = None
        self.first_text_s: float | None = None
        """From the start of the attempt to its first text."""
        self._unsent = 0
        self._costs: list[Usage] = []
        self._loop = asyncio.get_running_loop()
        self._begun = 0.0
        self._end = end
        self._next_text_end = end
        self._first_token_timeout_s = settings.first_token_timeout_s
        self._idle_timeout_s = settings.idle_timeout_s
        self._timeout: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: ChatError | None = None
        self.is_final = False
        """Whether the finish reason stands even if silence or a lost connection follows."""
        self._texts: list[str] = []
        self._untaken = 0
        self._is_closed = False
        self._first_text = self._loop.create_future()
        self._taker: asyncio.Future[None] | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()

    # The model's side.

    @property
    def is_full(self) -> bool:
        """Whether the model is so far ahead of the client that it has to wait for `room`."""
        return self._untaken > _ROOM

    def begin(self) -> None:
        """Note that the model is about to be asked, for the first time or again; its text is awaited from the first."""
        self._begun = self._loop.time()
        if not self.attempts:
            self._next_text_end = self._begun + self._first_token_timeout_s
        self._costs = self.costs()
        self.attempts += 1
        self.is_answered = False
        self.usage = None

    async def read(self, answer: Coroutine[Any, Any, None]) -> None:
        """Read an answer in a task of its own, and wait only for its first text, or its end where it has none.

        With the first text, openai-agents' work is done, as nothing is asked again after it. What it keeps for a run is
        half of what a stream occupies; so it goes then, and not at the end.
        """
        self.reading = asyncio.create_task(answer)
        await asyncio.wait({self.reading, self._first_text}, return_when=asyncio.FIRST_COMPLETED)
        if not self._first_text.done():
            await self.reading

    @asynccontextmanager
    async def deadlines(self) -> AsyncIterator[None]:
        """Keep the deadlines of all that is awaited in the block, wherever the client is.

        Raises:
            ChatError: by the name of the deadline that passed, or that the run was stopped with.
        """
        try:
            async with asyncio.timeout(None) as self._timeout:
                self._watch()
                yield
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise
            raise self._expiry() from None
        except ChatError as error:
            self._unsent += not error.was_sent
            raise
        finally:
            self._timeout = None
            if self._timer is not None:
                self._timer.cancel()

    def add(self, text: str, deltas: int) -> None:
        """Give text that has come, of so many deltas; it moves the deadline for the next."""
        is_first = not self.deltas
        self.deltas += deltas
        if is_first:
            self.first_text_s = self._loop.time() - self._begun
        if not self.is_final:
            self._next_text_end = self._loop.time() + self._idle_timeout_s
            if is_first:  # which may have been given far more time than the next
                self._watch()
        self._texts.append(text)
        self._untaken += len(text)
        self._tell()
        if is_first:
            self._first_text.set_result(None)

    async def room(self) -> None:
        """Wait until the client has taken the text; the upstream is not silent meanwhile, just not read."""
        self._has_room.clear()
        await self._has_room.wait()
        self._next_text_end = self._loop.time() + self._idle_timeout_s
        self._watch()

    def finish(self, reason: FinishReason, *, is_final: bool) -> None:
        """Note why the model says it has finished, until it says more.

        If this can be its last word, silence ends the answer soon. If not, because the reason came with text or before
        any, it counts only if the stream then ends in good order.
        """
        self.finish_reason = reason
        self.is_final = is_final
        if is_final:
            self._next_text_end = self._loop.time() + _LAST_WORD_TIMEOUT_S
            self._watch()

    def retract_finish(self) -> None:
        """Note that the model goes on after it said why it had finished."""
        self.finish_reason = None
        self.is_final = False

    def close(self, failure: BaseException | None = None) -> None:
        """Note that no more text comes, and why, if that is a failure; the first reason stays."""
        if not self._is_closed:
            self._is_closed = True
            self.failure = failure
            if failure is not None and not self.is_final:
                self.finish_reason = None
            self._tell()

    # The service's side.

    async def take(self) -> str | None:
        """Wait for text, and take all that is there; `None` says that no more comes."""
        while not self._texts:
            if self._is_closed:
                return None
            self._taker = self._loop.create_future()
            await self._taker
        text = self._texts[0] if len(self._texts) == 1 else "".join(self._texts)
        self._texts.clear()
        self._untaken = 0
        self._has_room.set()
        return text

    def stop(self, error: ChatError) -> None:
        """End the run as soon as may be, with this error; text that is there already still goes out."""
        self._stopped = error
        self._watch()

    def has_time(self, wait_s: float) -> bool:
        """Tell whether text may still come in time after such a wait."""
        return self._stopped is None and self._loop.time() + wait_s < min(self._end, self._next_text_end)

    def best_usage(self) -> Usage:
        """Return the upstream's usage; failing that, the deltas seen as an estimate; failing that, nothing known."""
        if self.usage is not None:
            return self.usage
        if self.deltas:
            return Usage.estimate(self.deltas)
        return NO_USAGE

    @property
    def was_sent(self) -> bool:
        """Whether any attempt has reached the upstream, or may have."""
        return self.attempts > self._unsent

    def costs(self) -> list[Usage]:
        """Return what is known of the cost of each attempt that the model had begun to answer."""
        return [*self._costs, self.best_usage()] if self.is_answered else self._costs

    def _tell(self) -> None:
        """Wake who waits for text; an `asyncio.Event` would cost twice as much for each."""
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def _watch(self) -> None:
        """Let the block of `deadlines` time out if it must; else look again when it may have to.

        One timer that looks late is cheaper than one that each text moves.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._timeout is None:
            return
        deadline = min(self._end, self._next_text_end) if self._has_room.is_set() else self._end
        if self._stopped is None and self._loop.time() < deadline:
            self._timer = self._loop.call_at(deadline, self._watch)
        else:
            with suppress(RuntimeError):  # it is timing out already
                self._timeout.reschedule(self._loop.time())

    def _expiry(self) -> ChatError:
        if self._stopped is not None:
            return self._stopped
        if self._loop.time() >= self._end:
            return ChatError(ErrorCode.REQUEST_TIMEOUT)
        if not self.deltas:
            return ChatError(ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT)
        return ChatError(ErrorCode.UPSTREAM_IDLE_TIMEOUT)
