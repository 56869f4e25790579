"""The run of a reply: its attempts, its deadlines, and a way to stop it."""

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
    """One request to one upstream: its parameters, and its result as far as the response has been read."""

    model: str
    host: str
    port: int
    max_tokens: int
    temperature: float | None
    is_fallback: bool
    call: int
    """The number of the model call that the attempt belongs to; an agent can make several calls, each with retries."""
    is_reply: bool
    """Whether its answer is part of the reply; false for requests from a tool or a guardrail."""

    status: int | None = None
    """The HTTP status of the upstream's response; `None` before the response."""
    was_sent: bool = True
    """False if the request certainly did not reach the upstream."""
    is_answered: bool = False
    """Whether the upstream has begun a response that is not an error."""
    deltas: int = 0
    """The number of pieces of the answer so far; each is about one token."""
    thoughts: int = 0
    """The number of pieces of reasoning so far; each is about one token."""
    first_text_s: float | None = None
    """Seconds from the start of the attempt to the first piece of the answer."""
    finish_reason: FinishReason | None = None
    is_final: bool = False
    """Whether the finish reason stays valid even if the upstream then falls silent or the connection is lost."""
    usage: Usage | None = None

    def best_usage(self) -> Usage:
        """Return the upstream's usage; without one, an estimate from the pieces; without any pieces, unknown usage."""
        if self.usage is not None:
            return self.usage
        pieces = self.deltas + self.thoughts
        return Usage.estimate(pieces) if pieces else NO_USAGE


class Run:
    """The state that all model calls for one reply share."""

    def __init__(
        self, settings: Settings, end: float, max_output_tokens: int, *, include_reasoning: bool = False
    ) -> None:
        """Begin a run; `end` is the loop's time at which the whole reply must have ended."""
        self.include_reasoning = include_reasoning
        self.settings = settings
        self.end = end
        self.attempts: list[Attempt] = []
        self._max_output_tokens = max_output_tokens
        self.stopped: ChatError | None = None
        self.waits: set[Deadlines] = set()
        """The deadlines to check when the run is stopped."""

    def stop(self, error: ChatError) -> None:
        """End the run with this error; text that has already arrived is still sent."""
        self.stopped = error
        for wait in tuple(self.waits):
            wait.look()

    def calls(self) -> list[Attempt]:
        """Return the last attempt of each model call, in order."""
        return list({attempt.call: attempt for attempt in self.attempts}.values())

    @property
    def last(self) -> Attempt | None:
        """The latest attempt that is part of the reply, or `None`."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.is_reply), None)

    def usage(self) -> Usage:
        """Return the usage of all model calls together."""
        return Usage.sum([attempt.best_usage() for attempt in self.calls()])

    @property
    def output_tokens_left(self) -> int:
        """The number of output tokens that the next model call may use; at least 1."""
        spent = sum(attempt.best_usage().output_tokens or 0 for attempt in self.calls())
        return max(1, self._max_output_tokens - spent)

    def costs(self) -> list[Usage] | None:
        """Return the usage of each attempt that was answered; `None` if no request has reached an upstream."""
        if not any(attempt.was_sent for attempt in self.attempts):
            return None
        return [attempt.best_usage() for attempt in self.attempts if attempt.is_answered]


class Deadlines:
    """The deadlines of one model call: the request's, the first token's, then each next token's.

    They interrupt the task that waits for the upstream. Tokens do not reset the timer, which would cost more: when it
    fires, it checks whether a deadline has passed.
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
        """Whether Parley waits for the upstream; false while it waits for a slow client to read."""
        self.expired: ChatError | None = None
        """The error that interrupted the wait, or `None`."""

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Enforce the deadlines in the block; raise `ChatError` if one passes, or the run is stopped."""
        self.is_waiting = True
        try:
            async with asyncio.timeout(None) as timeout:

                def interrupt(_: ChatError) -> None:
                    with suppress(RuntimeError):  # the timeout has already expired
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
        if self.expired is not None:  # a deadline passed in the same loop iteration in which the previous wait ended
            interrupt(self.expired)
        else:
            self.look()

    def stop(self) -> None:
        """Stop the timer; do not call `interrupt` any more."""
        self._interrupt = None
        self._run.waits.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def has_time(self, wait_s: float) -> bool:
        """Return whether a token can still arrive in time after a wait of this many seconds."""
        return self._run.stopped is None and self._loop.time() + wait_s < min(self._run.end, self._next)

    def renew(self, *, has_text: bool = True) -> None:
        """Restart the wait for the next token; without `has_text`, for the first one, as the model still thinks."""
        settings = self._run.settings
        self._next = self._loop.time() + (settings.idle_timeout_s if has_text else settings.first_token_timeout_s)
        if has_text and not self._has_begun:  # the timer may still be set for the later deadline of the first token
            self._has_begun = True
            self.look()

    def shorten(self, timeout_s: float) -> None:
        """Set the deadline of the wait to this many seconds from now."""
        self._next = self._loop.time() + timeout_s
        self.look()

    def look(self) -> None:
        """Interrupt the wait if a deadline has passed or the run is stopped; if not, set the timer to check again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._interrupt is None or self.expired is not None:
            return
        now = self._loop.time()
        self.expired = self._expiry(now)
        if self.expired is not None:
            self._interrupt(self.expired)
            return
        # If the client is slow to read, the next wait begins later, and then gets its full time.
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
