"""Scripts for the scripted upstream that only our own tests need: an answer that waits for the test, and tool calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from parley.testing.upstream import delta

if TYPE_CHECKING:
    from parley.testing.exchange import Exchange, Script

TOOL_USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


class Gated:
    """A script that sends its first text at once, and its last when `may_end` is set; it counts the begun answers.

    With `pace_s`, it repeats the first text every so many seconds until then.
    """

    def __init__(self, first: str = "first", last: str = "last", pace_s: float | None = None) -> None:
        self._texts = first, last
        self._pace_s = pace_s
        self._begun = 0
        self._has_begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request."""
        first, last = self._texts
        await exchange.head()
        await exchange.events(delta(first))
        self._begun += 1
        self._has_begun.set()
        while not self.may_end.is_set():
            try:
                await asyncio.wait_for(self.may_end.wait(), self._pace_s)
            except TimeoutError:
                await exchange.events(delta(first))
        await exchange.events(delta(last), delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    async def begin(self, number: int) -> None:
        """Wait until this many answers have begun."""
        while self._begun < number:
            self._has_begun.clear()
            await self._has_begun.wait()


def call(name: str, *arguments: str, text: str = "") -> Script:
    """Call a tool, with the arguments in pieces."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        if text:
            await exchange.events(delta(text))
        first = {"index": 0, "id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": ""}}
        await exchange.events(tool_calls(first))
        await exchange.events(*(tool_calls({"index": 0, "function": {"arguments": piece}}) for piece in arguments))
        await exchange.events(delta(finish_reason="tool_calls"), {"choices": [], "usage": TOOL_USAGE}, "[DONE]")
        await exchange.end()

    return script


call_weather = call("weather", '{"ci', 'ty": "Paris"}')


def tool_calls(*calls: object) -> dict[str, object]:
    """Return a chunk with pieces of tool calls."""
    return {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
