"""Owns the run of a reply: asks the model through openai-agents, keeps the deadlines, tells what happened as events."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import msgspec
import structlog

from parley.chat import runner
from parley.chat.admission import Admission
from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import (
    Event,
    FinishReason,
    ReplyAdmitted,
    ReplyFailed,
    ReplyFinished,
    ReplyStarted,
    ReplyText,
    Timing,
    Usage,
)
from parley.chat.quotas import Quotas
from parley.chat.run import Run
from parley.chat.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from parley.chat.messages import Prompt
    from parley.chat.provider import Provider
    from parley.chat.record import Record
    from parley.chat.watch import Watch
    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)

_CLEAN_UP_TIMEOUT_S: Final = 5.0

# What one provider fails by, before its first text, another need not.
_ANOTHER_MAY_ANSWER: Final = {
    ErrorCode.UPSTREAM_AUTH,
    ErrorCode.UPSTREAM_RATE_LIMITED,
    ErrorCode.UPSTREAM_UNREACHABLE,
    ErrorCode.UPSTREAM_ERROR,
    ErrorCode.UPSTREAM_TRUNCATED,
    ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT,
}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole reply."""

    model: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing


class ChatService:
    """Answers prompts; keeps nothing of a conversation."""

    def __init__(self, settings: Settings, providers: Sequence[Provider], watch: Watch) -> None:
        """Take the providers in the order in which they are asked; a later one only where those before it failed."""
        self._settings = settings
        self._providers = providers
        self._is_draining = False
        self._runs: set[Run] = set()
        self._admission = Admission(
            places=settings.max_streams or providers[0].max_streams,
            queue=settings.max_queue,
            timeout_s=settings.queue_timeout_s,
            watch=watch,
        )
        self._quotas = Quotas(settings, lambda: self._admission.usual_stay_s)
        self._watch = watch

    def drain(self) -> None:
        """Refuse new prompts from now on; replies under way go on."""
        self._is_draining = True

    def stop(self) -> None:
        """End the replies under way, each with what has come of it and an error."""
        for run in self._runs:
            run.stop(ChatError(ErrorCode.SHUTTING_DOWN, reason="drain_timeout"))

    async def check(self) -> ErrorCode | None:
        """Tell whether a prompt would be answered now; if not, the error that it would meet."""
        if self._is_draining:
            return ErrorCode.SHUTTING_DOWN
        problem = None
        for provider in self._providers:
            problem = await provider.check()
            if problem is None:
                break
        return problem

    async def stream(self, prompt: Prompt, record: Record) -> AsyncGenerator[Event, None]:
        """Yield the events of one reply; the last is `ReplyFinished` or `ReplyFailed`, and nothing is raised.

        Closing the generator, or cancelling the task that waits on it, stops the model and closes its connection.
        What the reply cost is noted on the request's record, however it ended.
        """
        stopwatch = Stopwatch()
        end = stopwatch.started + prompt.timeout_s
        provider, run = self._providers[0], Run(self._settings, end)
        runs: list[Run] = []
        failure: ChatError | None = None
        try:
            try:
                self._refuse_while_draining()
                async with self._quotas.held(prompt, lambda: _costs(runs)), self._admission.place(end, stopwatch.turn):
                    self._refuse_while_draining()
                    yield ReplyAdmitted()
                    for provider in self._providers:
                        run, failure = Run(self._settings, end), None
                        runs.append(run)
                        try:
                            async with self._running(prompt, provider, run):
                                while (text := await run.take()) is not None:
                                    if (gap_s := stopwatch.text()) is None:
                                        yield ReplyStarted(provider.model_name)
                                    else:
                                        self._watch.gap(gap_s)
                                    yield ReplyText(text)
                        except ChatError as error:
                            failure = error
                        is_last = provider is self._providers[-1]
                        if is_last or run.deltas or failure is None or failure.code not in _ANOTHER_MAY_ANSWER:
                            break
                        _log.warning("provider_failed", model=provider.model_name, error_code=failure.code)
            except ChatError as error:
                failure = error
            except Exception:  # noqa: BLE001  # whatever it was, the client must learn that the reply has ended
                _log.exception("unexpected_error")
                failure = ChatError(ErrorCode.INTERNAL)
            timing = stopwatch.timing()
            # Once the model has said why it finished, nothing that fails later takes anything from the answer.
            if run.finish_reason is None:
                failure = failure or ChatError(ErrorCode.UPSTREAM_TRUNCATED)
                yield ReplyFailed(error=failure, usage=run.best_usage(), timing=timing)
            else:
                if stopwatch.first_token is None:  # an empty answer
                    yield ReplyStarted(provider.model_name)
                yield ReplyFinished(finish_reason=run.finish_reason, usage=run.best_usage(), timing=timing)
        finally:
            record.queue_ms, record.first_token_ms = stopwatch.queue_ms, stopwatch.timing().first_token_ms
            self._note(record, provider, run, sum(run.attempts for run in runs))

    async def complete(self, prompt: Prompt, record: Record) -> Reply:
        """Collect the events of one reply.

        Raises:
            ChatError: where the reply failed; what had come of it is dropped.
        """
        model = ""
        texts: list[str] = []
        async with aclosing(self.stream(prompt, record)) as events:
            async for event in events:
                match event:
                    case ReplyStarted():
                        model = event.model
                    case ReplyText():
                        texts.append(event.text)
                    case ReplyFailed():
                        raise event.error
                    case ReplyFinished():
                        return Reply(
                            model=model,
                            text="".join(texts),
                            finish_reason=event.finish_reason,
                            usage=event.usage,
                            timing=event.timing,
                        )
        raise AssertionError("a reply has a last event")

    def _note(self, record: Record, provider: Provider, run: Run, attempts: int) -> None:
        """Note who replied, and what it cost."""
        usage = run.best_usage()
        record.model = provider.model_name if attempts else None
        record.attempts = attempts
        record.is_fallback = provider is not self._providers[0] if attempts else None
        record.finish_reason = run.finish_reason
        record.input_tokens = usage.input_tokens
        record.output_tokens = usage.output_tokens
        record.usage_source = usage.source

    def _refuse_while_draining(self) -> None:
        if self._is_draining:
            raise ChatError(ErrorCode.SHUTTING_DOWN, reason="draining")

    @asynccontextmanager
    async def _running(self, prompt: Prompt, provider: Provider, run: Run) -> AsyncIterator[None]:
        """Run the model, from the start to the close of its connection; it keeps the deadlines.

        Raises:
            ChatError: where the model has failed, and not said before why it finished.
        """
        asking = runner.start(prompt, provider, run, self._settings.retries)
        asking.add_done_callback(partial(_note_failure, run))
        self._runs.add(run)
        try:
            yield
            if run.failure is not None and run.finish_reason is None:
                raise run.failure
        finally:
            self._runs.discard(run)
            tasks = [asking] if run.reading is None else [asking, run.reading]
            for task in tasks:
                task.cancel()
            with anyio.move_on_after(_CLEAN_UP_TIMEOUT_S, shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)


def _costs(runs: Sequence[Run]) -> list[Usage] | None:
    return [usage for run in runs for usage in run.costs()] if any(run.was_sent for run in runs) else None


def _note_failure(run: Run, asking: asyncio.Task[None]) -> None:
    """Close the run where openai-agents ended without a text; else the model closes it, at the answer's end."""
    if asking.cancelled():
        run.close()
    elif (error := asking.exception()) is not None:
        run.close(error)
