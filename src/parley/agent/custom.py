"""The operator's own agent, with tools, guardrails and handoffs, run by openai-agents' `Runner`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import anyio
from agents import RawResponsesStreamEvent, RunConfig, Runner
from agents.exceptions import (
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)

from parley.agent.conversion import PIECES, warm_up
from parley.agent.loading import has_guardrails, load
from parley.agent.model import Backpressure, UpstreamModels
from parley.agent.nested import confine, models_of_run
from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import ReplyReasoning, ReplyText
from parley.chat.run import Deadlines

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agents import RunResultStreaming

    from parley.chat.messages import Prompt
    from parley.chat.run import Run
    from parley.providers.calls import Upstreams
    from parley.settings import Settings

# Seconds for a run to end after its deadline before Parley abandons it: tools and guardrails may not stop.
_LAST_WORDS_S: Final = 1.0

_TRIPWIRES: Final = (
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)


class CustomAgent:
    """Answers with the operator's agent; all its model calls go to Parley's upstreams."""

    def __init__(self, path: str, upstreams: Upstreams, settings: Settings) -> None:
        """Load the agent, or raise `AgentError` if Parley cannot run it."""
        self._agent = load(path)
        confine()
        self._upstreams = upstreams
        self._settings = settings
        named = [self._agent.model] if isinstance(self._agent.model, str) else upstreams.model_names[:1]
        self.model_names = [*named, *upstreams.model_names[1:]]
        self.max_streams = upstreams.max_streams
        self.may_withhold = has_guardrails(self._agent)
        self.check = upstreams.check
        warm_up()

    async def answer(self, prompt: Prompt, run: Run) -> AsyncGenerator[ReplyText | ReplyReasoning, None]:
        """Yield the text of all model calls as it arrives; if a tool's result ends the run, yield that result last.

        Raises:
            ChatError: if a model call fails, a guardrail trips, or the agent does not finish.
        """
        backpressure = Backpressure()
        models = UpstreamModels(self._upstreams, self._settings, run=run, backpressure=backpressure)
        turns: list[Any] = [{"role": message.role, "content": message.content} for message in prompt.messages]
        config = RunConfig(model_provider=models, tracing_disabled=True, trace_include_sensitive_data=False)
        asked = UpstreamModels(self._upstreams, self._settings, run=run, is_reply=False)
        context = copy_context()
        context.run(models_of_run.set, (asked, asyncio.get_running_loop()))
        result = context.run(Runner.run_streamed, self._agent, turns, run_config=config)
        events: Any = result.stream_events()
        end = _End(run, result, backpressure)
        try:
            while True:
                with backpressure.reading():
                    async with end.limit():
                        event = await anext(events, None)
                if event is None:
                    break
                data: Any = event.data if isinstance(event, RawResponsesStreamEvent) else None
                if (kind := PIECES.get(type(data))) is not None:
                    yield kind(data.delta)
            if end.error is not None:
                raise end.error  # noqa: TRY301  # the run was ended early
            if result.new_items and result.new_items[-1].type == "tool_call_output_item":
                yield ReplyText(str(result.final_output))
        except Exception as error:
            named = end.error or _named(error)
            if named is None or named is error:
                raise
            raise named from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("a tool has cancelled itself") from error
        finally:
            await end.stop(events)


class _End:
    """Ends a run at the request's deadline, even if the client does not read, or the run resists cancellation.

    A model call that is being streamed ends itself, after all of its text; then the run is not cancelled here.
    """

    def __init__(self, run: Run, result: RunResultStreaming, backpressure: Backpressure) -> None:
        self.error: ChatError | None = None
        """The reason why the run was ended, or `None`."""
        self._run = run
        self._result = result
        self._backpressure = backpressure
        self._loop = asyncio.get_running_loop()
        self._wait: asyncio.Timeout | None = None
        self._deadlines = Deadlines(run)
        self._deadlines.is_waiting = False  # each model call has its own deadlines for the upstream
        self._deadlines.start(self._interrupt)

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Wait for the run in the block; after the deadline, for at most `_LAST_WORDS_S`.

        Raises:
            ChatError: if the run does not end in that time.
        """
        expired = self._deadlines.expired
        try:
            async with asyncio.timeout(None if expired is None else _LAST_WORDS_S) as self._wait:
                yield
        except TimeoutError:
            if self._deadlines.expired is None:
                raise
            raise self._deadlines.expired from None

    async def stop(self, events: AsyncGenerator[Any, None]) -> None:
        """Stop the run if it has not ended, and wait up to `_LAST_WORDS_S` for its model to close the connection."""
        self._deadlines.stop()
        self._run.stop(ChatError(ErrorCode.INTERNAL))  # a task that a tool has left behind may still call a model
        self._result.cancel()
        with anyio.move_on_after(_LAST_WORDS_S, shield=True):
            if self._result.run_loop_task is not None:
                await asyncio.gather(self._result.run_loop_task, return_exceptions=True)
            await events.aclose()

    def _interrupt(self, error: ChatError) -> None:
        if self._result.run_loop_task is None or self._result.run_loop_task.done():
            return
        if self._wait is not None:
            with suppress(RuntimeError):  # no wait is active now
                self._wait.reschedule(self._loop.time() + _LAST_WORDS_S)
        if not self._backpressure.streams:
            self.error = error
            self._result.cancel()


def _named(error: Exception) -> ChatError | None:
    """Return the client's error for an exception of the run; `None` if the exception is unexpected."""
    if isinstance(error, _TRIPWIRES):
        return ChatError(ErrorCode.GUARDRAIL_TRIPPED)
    if isinstance(error, MaxTurnsExceeded):
        return ChatError(ErrorCode.TOO_MANY_TURNS)
    if isinstance(error, ModelBehaviorError | ModelRefusalError | RecursionError):  # arguments may be nested too deeply
        detail = "The model's answer is not what the agent needs, such as a valid tool call."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ChatError):
        cause = cause.__cause__
    return cause
