"""The scripted upstream: a real HTTP server on a real socket; the test decides on every byte and pause."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import ssl

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
TOOL_USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@dataclass
class Connection:
    """One connection in the ledger; times are those of the event loop, in seconds."""

    opened: float
    closed: float | None = None
    closed_by: Literal["parley", "upstream"] | None = None
    is_closed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Exchange:
    """One request as the upstream received it, and the methods to answer it byte by byte."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: Connection
    writer: asyncio.StreamWriter
    headers_of_all: dict[str, str]
    """Additional headers of every response."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection is closed, by either side."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection is closed, or when the answer has been sent completely."""

    @property
    def json(self) -> Any:
        """The request's body."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The user's last message."""
        return str([turn["content"] for turn in self.json["messages"] if turn["role"] == "user"][-1])

    @property
    def follows_a_tool(self) -> bool:
        """Whether the request has the result of a tool that the model called."""
        return bool(self.json["messages"][-1]["role"] == "tool")

    async def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Send the status line and headers."""
        lines = [f"HTTP/1.1 {status} Scripted", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in {**self.headers_of_all, **headers}.items()]
        await self._send("\r\n".join([*lines, "", ""]).encode())

    async def write(self, data: bytes) -> None:
        """Send bytes of the body."""
        if data:  # an empty chunk would end the body
            await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def events(self, *payloads: object) -> None:
        """Send server-sent events; a string is sent as it is, and everything else as JSON."""
        for payload in payloads:
            text = payload if isinstance(payload, str) else json.dumps(payload)
            await self.write(f"data: {text}\n\n".encode())

    async def end(self) -> None:
        """End the body; the connection can be used again."""
        await self._send(b"0\r\n\r\n")
        self.over.set()

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, in one segment if they fit; do not wait until Parley reads them."""
        self.writer.write(data)

    def abort(self) -> None:
        """Break the connection with an RST."""
        self.connection.closed_by = "upstream"
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Close the connection with a FIN, without ending the body."""
        self.connection.closed_by = "upstream"
        self.writer.close()

    def set_gone(self, _: object) -> None:
        """Note that nothing more can be sent."""
        self.gone.set()
        self.over.set()

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0)  # draining alone does not let Parley, in the same loop, run


Script = Callable[[Exchange], Awaitable[None]]


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


class ScriptedUpstream:
    """Runs `script` for each chat completion; `models_script` answers GET /models; every response has `headers`.

    `exchanges` holds the requests that `script` answered, and `connections` records each connection and which side
    closed it. If `tool_script` is set, it answers the model calls of an agent that do not follow a tool, and `script`
    answers those with a tool's result.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.script: Script = answer("Hel", "lo")
        self.tool_script: Script | None = None
        self.models_script: Script = respond(200, {"object": "list", "data": []})
        self.headers: dict[str, str] = {}
        self.models_requests = 0
        self.exchanges: list[Exchange] = []
        self.received = asyncio.Event()
        self.connections: list[Connection] = []
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base URL to configure in Parley."""
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, self._port, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def next_exchange(self) -> Exchange:
        """Wait for the next request for a chat completion."""
        await self.received.wait()
        self.received.clear()
        return self.exchanges[-1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        now = asyncio.get_running_loop().time
        connection = Connection(opened=now())
        self.connections.append(connection)
        # A browser may keep its connection open when the upstream stops.
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            start = b""
            while True:
                exchange = await self._read(start, connection, reader, writer)
                next_byte = asyncio.create_task(reader.read(1))
                next_byte.add_done_callback(exchange.set_gone)
                with contextlib.suppress(ConnectionError):
                    await self._answer(exchange)
                start = await next_byte
                if not start:
                    break
        connection.closed_by = connection.closed_by or "parley"
        connection.closed = now()
        connection.is_closed.set()

    async def _read(
        self, start: bytes, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange:
        head = start + await reader.readuntil(b"\r\n\r\n")
        request, *lines = head.decode().rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Exchange(request.split(" ")[1], headers, body, connection, writer, self.headers)

    async def _answer(self, exchange: Exchange) -> None:
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
