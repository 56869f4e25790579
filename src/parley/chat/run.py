"""Owns the run of a reply: the attempts that were made for it, its deadlines, and a way to stop it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import NO_USAGE, FinishReason, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from parley.settings import Settings


class Attempt(msgspec.Struct, kw_only=True):
    """One request to one upstream: who is asked for what, and what came of it, as far as the response has been read."""

    model: str
    host: str
    port: int
    max_tokens: int
    temperature: float | None
    is_fallback: bool
    call: int
    """The number of the model call that it belongs to; an agent makes several calls, each with retries."""
    is_reply: bool
    """Whether its answer is part of the reply; what a tool or a guardrail asks is not."""

    status: int | None = None
    """The HTTP status of the upstream's response, once there is one."""
    was_sent: bool = True
    """False if the request certainly did not reach the upstream."""
    is_answered: bool = False
    """Whether the upstream has begun a response that is not an error."""
    deltas: int = 0
    """Pieces of the answer so far, each about a token."""
    thoughts: int = 0
    """Pieces of what the model thought, each about a token."""
    first_text_s: float | None = None
    """From the start of the attempt to its first piece."""
    finish_reason: FinishReason | None = None
    is_final: bool = False
    """Whether the finish reason stands even if silence or a lost connection follows."""
    usage: Usage | None = None

    def best_usage(self) -> Usage:
        """Return the upstream's usage; failing that, the deltas as an estimate; failing that, nothing known."""
        if self.usage is not None:
            return self.usage
        pieces = self.deltas + self.thoughts
        return Usage.estimate(pieces) if pieces else NO_USAGE


class Run:
    """What all model calls for one reply share."""

    def __init__(
        self, settings: Settings, end: float, max_output_tokens: int, *, include_reasoning: bool = False
    ) -> None:
        """Begin; `end` is the loop's time by which the whole reply must be over."""
        self.include_reasoning = include_reasoning
        self.settings = settings
        self.end = end
        self.attempts: list[Attempt] = []
        self._max_output_tokens = max_output_tokens
        self.stopped: ChatError | None = None
        self.waits: set[Deadlines] = set()
        """Who must be told when the run is stopped."""

    def stop(self, error: ChatError) -> None:
        """End the run with this error; text that has come already still goes out."""
        self.stopped = error
        for wait in tuple(self.waits):
            wait.look()

    def calls(self) -> list[Attempt]:
        """Return the last attempt of each model call, in order."""
        return list({attempt.call: attempt for attempt in self.attempts}.values())

    @property
    def last(self) -> Attempt | None:
        """The attempt that the reply ended with, so far."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.is_reply), None)

    def usage(self) -> Usage:
        """Return the usage of all model calls together."""
        return Usage.sum([attempt.best_usage() for attempt in self.calls()])

    @property
    def output_tokens_left(self) -> int:
        """The number of tokens that the next model call may answer with."""
        spent = sum(attempt.best_usage().output_tokens or 0 for attempt in self.calls())
        return max(1, self._max_output_tokens - spent)

    def costs(self) -> list[Usage] | None:
        """Return the usage of each attempt that was answered; `None` if no request has reached an upstream."""
        if not any(attempt.was_sent for attempt in self.attempts):
            return None
        return [attempt.best_usage() for attempt in self.attempts if attempt.is_answered]


class Deadlines:
    """The deadlines of one model call: the request's, the first token's, then each next token's.

    They interrupt whoever waits for the upstream. The timer looks late, because one that each token moves costs more.
    """

    def __init__(self, run: Run) -> None:
        """Begin to wait for the first token."""
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._has_begun = False
        self._next = self._loop.time() + run.settings.first_token_timeout_s
        self._interrupt: Callable[[ChatError], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_waiting = True
        """Whether the upstream is awaited; it is not while the client takes its time to read."""
        self.expired: ChatError | None = None
        """What the wait was interrupted with."""

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Keep the deadlines in the block; raise `ChatError` if one has passed, or the run is stopped."""
        self.is_waiting = True
        try:
            async with asyncio.timeout(None) as timeout:

                def interrupt(_: ChatError) -> None:
                    with suppress(RuntimeError):  # it is timing out already
                        timeout.reschedule(self._loop.time())

                self.start(interrupt)
                yield
        except TimeoutError:
            if self.expired is None:
                raise
            raise self.expired from None
        finally:
            self.stop()

    def start(self, interrupt: Callable[[ChatError], None]) -> None:
        """Call `interrupt` once when a deadline passes, or the run is stopped."""
        self._interrupt = interrupt
        self._run.waits.add(self)
        if self.expired is not None:  # in the same turn of the loop in which the wait before this one ended
            interrupt(self.expired)
        else:
            self.look()

    def stop(self) -> None:
        """Interrupt nobody any more."""
        self._interrupt = None
        self._run.waits.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def has_time(self, wait_s: float) -> bool:
        """Return whether a token can still come in time after such a wait."""
        return self._run.stopped is None and self._loop.time() + wait_s < min(self._run.end, self._next)

    def renew(self, *, has_text: bool = True) -> None:
        """Wait from now on for the next token; for the first one, if there is no text yet, but the model thinks."""
        settings = self._run.settings
        self._next = self._loop.time() + (settings.idle_timeout_s if has_text else settings.first_token_timeout_s)
        if has_text and not self._has_begun:  # the first token may have been given far more time
            self._has_begun = True
            self.look()

    def shorten(self, timeout_s: float) -> None:
        """Wait no longer than this from now on."""
        self._next = self._loop.time() + timeout_s
        self.look()

    def look(self) -> None:
        """Interrupt the wait if its time is over; if not, look again when it may be."""
        if self._timer is not None:
            self._timer.cancel()
        if self._interrupt is None or self.expired is not None:
            return
        now = self._loop.time()
        self.expired = self._expiry(now)
        if self.expired is not None:
            self._interrupt(self.expired)
            return
        # If the client is slow to read, the wait begins later, and has the whole time then.
        following = self._next if self._next > now else now + self._run.settings.idle_timeout_s
        self._timer = self._loop.call_at(min(self._run.end, following), self.look)

    def _expiry(self, now: float) -> ChatError | None:
        if self._run.stopped is not None:
            return self._run.stopped
        if now >= self._run.end:
            return ChatError(ErrorCode.REQUEST_TIMEOUT)
        if not self.is_waiting or now < self._next:
            return None
        is_idle = self._has_begun
        return ChatError(ErrorCode.UPSTREAM_IDLE_TIMEOUT if is_idle else ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT)
