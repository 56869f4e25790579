"""The upstreams as models for openai-agents, which report how each answer really ended."""

from __future__ import annotations

import asyncio
import io
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from agents import Model, ModelProvider, ModelResponse, Usage
from openai.types.responses import ResponseCompletedEvent

from parley.agent.conversion import completed, reasoning_delta, text_delta, to_request
from parley.chat.run import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agents import AgentOutputSchemaBase, Handoff, ModelSettings, Tool, TResponseInputItem, TResponseStreamEvent

    from parley.providers.calls import Upstreams
    from parley.providers.exchange import Exchange
    from parley.settings import Settings


class Backpressure:
    """Holds a model back while earlier text is on its way to the client.

    The queue of openai-agents between the model and its reader is unbounded, and an error that is raised too early
    would overtake the text in it. The queue is empty when its reader waits for the next event.
    """

    def __init__(self) -> None:
        self.streams = 0
        """The number of model calls that are being streamed."""
        self._reader_waits = asyncio.Event()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Mark the reader as waiting for the next event during the block."""
        self._reader_waits.set()
        try:
            yield
        finally:
            self._reader_waits.clear()

    async def wait(self) -> None:
        """Wait until all events have been read."""
        await asyncio.sleep(0)  # let a reader that waits run first
        await self._reader_waits.wait()


class UpstreamModel(Model):
    """A model of the upstreams, with retries and fallback.

    It raises `ChatError` if an answer fails, and reports an answer that was cut short as `incomplete`.
    """

    def __init__(self, models: UpstreamModels, name: str | None, *, is_reply: bool) -> None:
        """Share the run of `models`; `name` selects another model of the first upstream, `None` the default."""
        self._models = models
        self._name = name
        self._is_reply = is_reply

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        """Return the whole answer, which is not part of the run's reply.

        Raises:
            ChatError: if the answer fails.
        """
        model = UpstreamModel(self._models, self._name, is_reply=False)
        events: Any = model.stream_response(*args, **options)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, ResponseCompletedEvent):
                    counts = event.response.usage
                    usage = (
                        Usage()
                        if counts is None
                        else Usage(
                            requests=1,
                            input_tokens=counts.input_tokens,
                            output_tokens=counts.output_tokens,
                            total_tokens=counts.total_tokens,
                        )
                    )
                    return ModelResponse(output=event.response.output, usage=usage, response_id=None)
        raise AssertionError("an answer has an end")

    async def stream_response(  # noqa: PLR0913, PLR0917  # as openai-agents calls it
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002  # named by openai-agents
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        *_: Any,
        **__: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Yield reasoning and text events, at most one of each per read of the upstream, then one completed event.

        Raises:
            ChatError: if the answer fails, after all text that had arrived has been yielded.
        """
        run, backpressure = self._models.run or self._new_run(model_settings), self._models.backpressure
        request = to_request(
            system_instructions,
            input,
            model_settings,
            tools,
            output_schema,
            handoffs,
            model=self._name,
            max_tokens=run.output_tokens_left,
            is_reply=self._is_reply,
            include_reasoning=run.include_reasoning,
        )
        exchange: Exchange | None = None
        error: BaseException | None = None
        text, number = io.StringIO(), 0  # a list of many short texts would take ten times the memory
        if backpressure is not None:
            backpressure.streams += 1
        try:
            exchange, piece = await self._models.upstreams.begin(request, run)
            while piece is not None:
                if run.include_reasoning and (thought := exchange.take_thoughts()):
                    yield reasoning_delta(delta=thought, sequence_number=number)
                    number += 1
                if piece:
                    text.write(piece)
                    yield text_delta(delta=piece, sequence_number=number)
                    number += 1
                if backpressure is not None:
                    await backpressure.wait()
                piece = await exchange.next()
            known = (str(message.get("tool_call_id")) for message in request.messages)
            calls = exchange.answer.tool_calls.joined(known) if exchange.answer.tool_calls else ()
            attempt = exchange.attempt
            yield completed(text.getvalue(), calls, attempt.model, attempt.finish_reason, attempt.usage, number)
        except BaseException as failure:
            error = failure
            if backpressure is not None and isinstance(failure, Exception):
                await backpressure.wait()
            raise
        finally:
            if backpressure is not None:
                backpressure.streams -= 1
            if exchange is not None:
                exchange.close(error)

    def _new_run(self, settings: ModelSettings) -> Run:
        ours = self._models.settings
        end = asyncio.get_running_loop().time() + ours.request_timeout_s
        return Run(ours, end, settings.max_tokens or ours.max_output_tokens)


class UpstreamModels(ModelProvider):
    """Provides the upstreams' models to openai-agents' `Runner`, by name."""

    def __init__(
        self,
        upstreams: Upstreams,
        settings: Settings,
        *,
        run: Run | None = None,
        backpressure: Backpressure | None = None,
        is_reply: bool = True,
    ) -> None:
        """Take what all the models share; without `run`, each model call gets a run of its own."""
        self.upstreams = upstreams
        self.settings = settings
        self.run = run
        self.backpressure = backpressure
        self._is_reply = is_reply

    def get_model(self, model_name: str | None) -> UpstreamModel:
        """Return a model; without a name, the one from the settings."""
        return UpstreamModel(self, model_name, is_reply=self._is_reply)
