"""The plain agent: a model with a system prompt, without tools, so that `Runner` is not needed."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from agents import ModelTracing

from parley.agent.conversion import PIECES, PLAIN, warm_up
from parley.agent.model import UpstreamModels

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from parley.chat.events import ReplyReasoning, ReplyText
    from parley.chat.messages import Prompt
    from parley.chat.run import Run
    from parley.providers.calls import Upstreams
    from parley.settings import Settings


class PlainAgent:
    """Answers with the model's own text."""

    def __init__(self, upstreams: Upstreams, settings: Settings) -> None:
        self._upstreams = upstreams
        self._settings = settings
        self.model_names = upstreams.model_names
        self.max_streams = upstreams.max_streams
        self.may_withhold = False
        self.check = upstreams.check
        warm_up()

    async def answer(self, prompt: Prompt, run: Run) -> AsyncGenerator[ReplyText | ReplyReasoning, None]:
        """Yield the model's text as it arrives; raise `ChatError` if the answer fails."""
        model = UpstreamModels(self._upstreams, self._settings, run=run).get_model(None)
        turns: list[Any] = [{"role": message.role, "content": message.content} for message in prompt.messages]
        events: Any = model.stream_response(None, turns, PLAIN, [], None, [], ModelTracing.DISABLED)
        async with aclosing(events):
            async for event in events:
                if (kind := PIECES.get(type(event))) is not None:
                    yield kind(event.delta)
