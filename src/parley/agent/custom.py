"""Owns the operator's own agent, with its tools, guardrails and handoffs, which openai-agents' `Runner` drives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
from agents import ModelProvider, RawResponsesStreamEvent, RunConfig, Runner
from agents.exceptions import (
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
from openai.types.responses import ResponseTextDeltaEvent

from parley.agent.conversion import warm_up
from parley.agent.loading import load
from parley.agent.model import Backpressure, UpstreamModels
from parley.chat.errors import ChatError, ErrorCode
from parley.chat.run import Deadlines

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agents import RunResultStreaming

    from parley.chat.messages import Prompt
    from parley.chat.run import Run
    from parley.providers.calls import Upstreams
    from parley.settings import Settings

_CLEAN_UP_TIMEOUT_S: Final = 5.0

_TRIPWIRES: Final = (
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)


class Context(NamedTuple):
    """What tools and guardrails get as their context."""

    models: ModelProvider
    """Parley's models, for what they ask a model themselves: `RunConfig(model_provider=wrapper.context.models)`."""


class CustomAgent:
    """Answers as the operator's agent does; all its model calls go to Parley's upstreams."""

    def __init__(self, path: str, upstreams: Upstreams, settings: Settings) -> None:
        """Load the agent, or raise `AgentError` if Parley cannot run it."""
        self._agent = load(path)
        self._upstreams = upstreams
        self._settings = settings
        named = [self._agent.model] if isinstance(self._agent.model, str) else upstreams.model_names[:1]
        self.model_names = [*named, *upstreams.model_names[1:]]
        self.max_streams = upstreams.max_streams
        self.check = upstreams.check
        warm_up()

    async def answer(self, prompt: Prompt, run: Run) -> AsyncGenerator[str, None]:
        """Yield the text of all model calls as it comes; a tool whose result ends the run has the last word.

        Raises:
            ChatError: if a model call fails, a guardrail trips, or the agent does not come to an end.
        """
        backpressure = Backpressure()
        models = UpstreamModels(self._upstreams, self._settings, run=run, backpressure=backpressure)
        turns: list[Any] = [{"role": message.role, "content": message.content} for message in prompt.messages]
        config = RunConfig(model_provider=models, tracing_disabled=True, trace_include_sensitive_data=False)
        deadlines = Deadlines(run)
        deadlines.is_waiting = False  # the models wait for the upstream; here, only the request's own deadline counts
        result = Runner.run_streamed(self._agent, turns, context=Context(models), run_config=config)
        events = result.stream_events()
        try:
            while True:
                with backpressure.reading():
                    async with deadlines.limit():
                        event = await anext(events, None)
                if event is None:
                    break
                if isinstance(event, RawResponsesStreamEvent) and isinstance(event.data, ResponseTextDeltaEvent):
                    yield event.data.delta
            if result.new_items and result.new_items[-1].type == "tool_call_output_item":
                yield str(result.final_output)
        except _TRIPWIRES as error:
            raise ChatError(ErrorCode.GUARDRAIL_TRIPPED) from error
        except MaxTurnsExceeded as error:
            raise ChatError(ErrorCode.TOO_MANY_TURNS) from error
        except (ModelBehaviorError, ModelRefusalError) as error:
            detail = "The model did not do what the agent needs, such as calling a tool in the right form."
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail) from error
        finally:
            await _stop(result)


async def _stop(result: RunResultStreaming) -> None:
    """End the run, and wait until its model has closed the connection."""
    result.cancel()
    if result.run_loop_task is not None:
        with anyio.move_on_after(_CLEAN_UP_TIMEOUT_S, shield=True), suppress(Exception, asyncio.CancelledError):
            await asyncio.wait([result.run_loop_task])
