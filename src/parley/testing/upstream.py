"""A scripted upstream: an OpenAI-compatible server on a real socket; the test controls each byte and pause."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from parley.testing.exchange import Exchange, Script, ScriptedServer

if TYPE_CHECKING:
    import ssl

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def delta(text: str | None = None, finish_reason: str | None = None, **more: object) -> dict[str, object]:
    """Return a chunk with a text, a finish reason, or both."""
    content = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}], **more}


def answer(*texts: str, finish_reason: str | None = "stop", usage: object = USAGE) -> Script:
    """Answer like OpenAI: role, texts, finish reason, usage, `[DONE]`; without a finish reason, omit `[DONE]`."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        await exchange.events(*(delta(text) for text in texts))
        if finish_reason is not None:
            await exchange.events(delta(finish_reason=finish_reason))
        if usage is not None:
            await exchange.events({"choices": [], "usage": usage})
        if finish_reason is not None:
            await exchange.events("[DONE]")
        await exchange.end()

    return script


def in_turn(*scripts: Script) -> Script:
    """Run these scripts in turn, one for each request; the last one also answers all further requests."""
    remaining = list(scripts)

    async def script(exchange: Exchange) -> None:
        await (remaining.pop(0) if len(remaining) > 1 else remaining[0])(exchange)

    return script


def respond(status: int, body: object, **headers: str) -> Script:
    """Answer with a JSON body, as an HTTP error does."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(status, "application/json", **headers)
        await exchange.write(json.dumps(body).encode())
        await exchange.end()

    return script


async def hang(exchange: Exchange) -> None:
    """Never answer."""
    await exchange.gone.wait()


class ScriptedUpstream(ScriptedServer):
    """Runs `script` for each chat completion; `models_script` answers GET /models; each response has `headers`.

    `exchanges` holds the requests that `script` answered, and `connections` records each connection and which side
    closed it. To test agents, set `tool_script`: it answers the requests without a tool's result, and `script` answers
    those with one.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        super().__init__(port, tls, host)
        self.script: Script = answer("Hel", "lo")
        self.tool_script: Script | None = None
        self.models_script: Script = respond(200, {"object": "list", "data": []})
        self.models_requests = 0
        self.exchanges: list[Exchange] = []
        self.received = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL to configure in Parley."""
        return f"{self.origin}/v1"

    async def next_exchange(self) -> Exchange:
        """Wait for the next request for a chat completion."""
        await self.received.wait()
        self.received.clear()
        return self.exchanges[-1]

    async def answer(self, exchange: Exchange) -> None:
        """Answer with the script that is set for this kind of request."""
        if exchange.path.endswith("/models"):
            self.models_requests += 1
            await self.models_script(exchange)
            return
        if self.tool_script is not None and not exchange.follows_a_tool:
            await self.tool_script(exchange)
            return
        self.exchanges.append(exchange)
        self.received.set()
        await self.script(exchange)
