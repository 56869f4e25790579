"""The chat service: admits prompts, passes them to the agent, and yields the events of each reply."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from parley.chat.admission import Admission
from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import (
    ReplyAdmitted,
    ReplyFailed,
    ReplyFinished,
    ReplyReasoning,
    ReplyStarted,
    ReplyText,
    Timing,
)
from parley.chat.quotas import Quotas
from parley.chat.run import Run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from parley.chat.events import Event
    from parley.chat.messages import Prompt
    from parley.chat.record import Record
    from parley.chat.watch import Watch
    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)


class Agent(Protocol):
    """Writes replies."""

    @property
    def model_names(self) -> list[str]:
        """The names of the models that the agent calls: the first, then the fallback."""

    @property
    def max_streams(self) -> int:
        """The number of replies that the agent can write at once, unless the settings override it."""

    @property
    def may_withhold(self) -> bool:
        """Whether a guardrail may still refuse an answer whose text has arrived."""

    def answer(self, prompt: Prompt, run: Run) -> AsyncGenerator[ReplyText | ReplyReasoning, None]:
        """Yield the reply as it arrives, and note the result of each attempt in the run.

        Closing the generator stops the model.

        Raises:
            ChatError: if the reply fails, after all text that had arrived has been yielded.
        """

    async def check(self) -> ErrorCode | None:
        """Return `None` if a model can be reached, or the code of the error that a request would get."""


class ChatService:
    """Answers prompts; stores nothing of a conversation."""

    def __init__(self, settings: Settings, agent: Agent, watch: Watch) -> None:
        """Take the agent that writes the replies."""
        self._settings = settings
        self._agent = agent
        self._is_draining = False
        self._runs: set[Run] = set()
        self._admission = Admission(
            places=settings.max_streams or agent.max_streams,
            queue=settings.max_queue,
            timeout_s=settings.queue_timeout_s,
            watch=watch,
        )
        self._quotas = Quotas(settings, lambda: self._admission.usual_stay_s)
        self._watch = watch

    @property
    def model_names(self) -> list[str]:
        """The names of the models that answer: the first, then the fallback."""
        return self._agent.model_names

    @property
    def may_withhold(self) -> bool:
        """Whether a guardrail may still refuse an answer whose text has arrived."""
        return self._agent.may_withhold

    def drain(self) -> None:
        """Refuse new prompts from now on; open replies continue."""
        self._is_draining = True

    def stop(self, reason: str) -> None:
        """End the open replies, each with an error after the text that has arrived; the log has the reason."""
        for run in self._runs:
            run.stop(ChatError(ErrorCode.SHUTTING_DOWN, reason=reason))

    async def check(self) -> ErrorCode | None:
        """Return `None` if a prompt would be answered now, or the code of the error that it would get."""
        if self._is_draining:
            return ErrorCode.SHUTTING_DOWN
        return await self._agent.check()

    async def stream(self, prompt: Prompt, record: Record) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply, the last of which is `ReplyFinished` or `ReplyFailed`; raise no errors.

        Closing the generator, or cancelling the task that waits on it, stops the model and closes its connection.
        The usage of the reply is noted in the request's record, whether or not it succeeded.
        """
        stopwatch = Stopwatch()
        run = Run(
            self._settings,
            stopwatch.started + prompt.timeout_s,
            prompt.max_output_tokens,
            include_reasoning=prompt.include_reasoning,
        )
        failure: ChatError | None = None
        has_started = False
        try:
            try:
                async with self._answering(prompt, run, stopwatch) as pieces:
                    yield ReplyAdmitted()
                    async for piece in pieces:
                        if not has_started:
                            has_started = True
                            yield ReplyStarted(self._model(run))
                        if isinstance(piece, ReplyText) and (gap_s := stopwatch.text()) is not None:
                            self._watch.gap(gap_s)
                        yield piece
            except ChatError as error:
                failure = error
            except Exception:  # noqa: BLE001  # after any error, the client must learn that the reply has ended
                _log.exception("unexpected_error")
                failure = ChatError(ErrorCode.INTERNAL)
            timing = stopwatch.timing()
            reason = run.last.finish_reason if run.last else None
            if failure is None and reason is not None:
                if not has_started:  # an empty answer
                    yield ReplyStarted(self._model(run))
                yield ReplyFinished(finish_reason=reason, usage=run.usage(), timing=timing)
            else:
                failure = failure or ChatError(ErrorCode.UPSTREAM_TRUNCATED)
                yield ReplyFailed(error=failure, usage=run.usage(), timing=timing)
        finally:
            record.queue_ms, record.first_token_ms = stopwatch.queue_ms, stopwatch.timing().first_token_ms
            _note(record, run)

    def _model(self, run: Run) -> str:
        return run.last.model if run.last else self._agent.model_names[0]

    def _refuse_while_draining(self) -> None:
        if self._is_draining:
            raise ChatError(ErrorCode.SHUTTING_DOWN, reason="draining")

    @asynccontextmanager
    async def _answering(
        self, prompt: Prompt, run: Run, stopwatch: Stopwatch
    ) -> AsyncIterator[AsyncIterator[ReplyText | ReplyReasoning]]:
        """Wait for a place, if the quotas allow the request; then yield the pieces of the agent's answer.

        Raises:
            ChatError: if no place becomes free, not enough is left of a quota, or Parley is shutting down.
        """
        self._refuse_while_draining()
        async with self._quotas.held(prompt, run.costs), self._admission.place(run.end, stopwatch.turn):
            self._refuse_while_draining()
            self._runs.add(run)
            try:
                async with aclosing(self._agent.answer(prompt, run)) as pieces:
                    yield pieces
            finally:
                self._runs.discard(run)


class Stopwatch:
    """Times one reply by the loop's clock: its wait in the queue, its first text, the gaps between texts, its end."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self.started = self._now()
        self.queue_ms: int | None = None
        """Milliseconds in the queue; `None` until the wait is over."""
        self.first_token: float | None = None
        self._last_text = 0.0

    def turn(self) -> None:
        """Note that the wait for a place is over, with or without success."""
        self.queue_ms = self._since_start_ms(self._now())

    def text(self) -> float | None:
        """Note that a text has arrived; return the seconds since the previous text, or `None` for the first."""
        now = self._now()
        gap_s = None if self.first_token is None else now - self._last_text
        if self.first_token is None:
            self.first_token = now
        self._last_text = now
        return gap_s

    def timing(self) -> Timing:
        """Return the milliseconds to the first text, if there was one, and until now."""
        first_token_ms = None if self.first_token is None else self._since_start_ms(self.first_token)
        return Timing(first_token_ms=first_token_ms, total_ms=self._since_start_ms(self._now()))

    def _since_start_ms(self, moment: float) -> int:
        return round((moment - self.started) * 1000)


def _note(record: Record, run: Run) -> None:
    """Note in the record which model replied, and the usage."""
    record.attempts = len(run.attempts)
    if run.attempts:
        last = run.last or run.attempts[-1]
        record.model = last.model
        record.is_fallback = last.is_fallback
    if run.last:
        record.finish_reason = run.last.finish_reason
    usage = run.usage()
    record.input_tokens = usage.input_tokens
    record.output_tokens = usage.output_tokens
    record.cached_input_tokens = usage.cached_input_tokens
    record.reasoning_tokens = usage.reasoning_tokens
    record.usage_source = usage.source
