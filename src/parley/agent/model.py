"""Owns the model: the upstreams as openai-agents sees them, with the truth about how an answer ended."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Final

from agents import Model, ModelProvider, ModelResponse, Usage
from openai.types.responses import ResponseCompletedEvent

from parley.agent.conversion import completed, text_delta, to_request
from parley.chat.run import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents import AgentOutputSchemaBase, Handoff, ModelSettings, Tool, TResponseInputItem, TResponseStreamEvent

    from parley.providers.calls import Upstreams
    from parley.settings import Settings

# Characters that a model may be ahead of the reader of its text.
_MOST_UNREAD: Final = 16_384


class Window:
    """Holds a model back that is far ahead of the reader: openai-agents' queue between the two has no bound."""

    def __init__(self) -> None:
        self._unread = 0
        self._is_read = asyncio.Event()

    async def wait(self, added: int) -> None:
        """Count characters that have been handed over; wait if there are too many."""
        self._unread += added
        while self._unread > _MOST_UNREAD:
            await self._next_read()

    async def wait_for_all(self) -> None:
        """Wait until all has been read: an error that is raised before would overtake the text."""
        while self._unread:
            await self._next_read()

    def read(self, size: int) -> None:
        """Count characters that have been read."""
        self._unread -= size
        self._is_read.set()

    async def _next_read(self) -> None:
        self._is_read.clear()
        await self._is_read.wait()


class UpstreamModel(Model):
    """A model of the upstreams', with their retries and their fallback.

    It raises `ChatError` if an answer fails, and says `incomplete` of one that was cut short.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        settings: Settings,
        *,
        name: str | None = None,
        run: Run | None = None,
        window: Window | None = None,
    ) -> None:
        """Take the upstreams; `name` is another model of the first one's. Without a run, each call is its own."""
        self._upstreams = upstreams
        self._settings = settings
        self._name = name
        self._run = run
        self._window = window

    async def get_response(self, *args: Any, **options: Any) -> ModelResponse:
        """Return the whole answer.

        Raises:
            ChatError: if it fails.
        """
        async for event in self.stream_response(*args, **options):
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
        """Yield a text event for what each read of the upstream brought, then one completed event.

        Raises:
            ChatError: if the answer fails; all text that had come by then has been yielded.
        """
        run = self._run or self._new_run(model_settings)
        request = to_request(
            system_instructions,
            input,
            model_settings,
            tools,
            output_schema,
            handoffs,
            model=self._name,
            max_tokens=run.output_tokens_left,
        )
        exchange, piece = await self._upstreams.begin(request, run)
        error: BaseException | None = None
        text, number = io.StringIO(), 0  # a list of many short texts would take ten times the memory
        try:
            while piece is not None:
                if piece:
                    text.write(piece)
                    yield text_delta(delta=piece, sequence_number=number)
                    number += 1
                    if self._window is not None:
                        await self._window.wait(len(piece))
                piece = await exchange.next()
            calls = exchange.answer.tool_calls
            yield completed(text.getvalue(), calls.joined() if calls else (), exchange.attempt, number)
        except BaseException as failure:
            error = failure
            if self._window is not None and isinstance(failure, Exception):
                await self._window.wait_for_all()
            raise
        finally:
            exchange.close(error)

    def _new_run(self, settings: ModelSettings) -> Run:
        end = asyncio.get_running_loop().time() + self._settings.request_timeout_s
        return Run(self._settings, end, settings.max_tokens or self._settings.max_output_tokens)


class UpstreamModels(ModelProvider):
    """Gives openai-agents' `Runner` the upstreams' models, by name."""

    def __init__(
        self, upstreams: Upstreams, settings: Settings, *, run: Run | None = None, window: Window | None = None
    ) -> None:
        self._upstreams = upstreams
        self._settings = settings
        self._run = run
        self._window = window

    def get_model(self, model_name: str | None) -> UpstreamModel:
        """Return a model; without a name, the one of the settings."""
        return UpstreamModel(self._upstreams, self._settings, name=model_name, run=self._run, window=self._window)
