"""A scripted HTTP server on a real socket: the script controls each byte and pause."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import h11

if TYPE_CHECKING:
    import ssl

_READ_BYTES: Final = 65_536
_MAX_HEAD_BYTES: Final = 65_536
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
# Turns of the loop after which a connection that has just been accepted has its handler.
_TURNS: Final = 5


@dataclass
class Connection:
    """One connection that the server accepted; times are those of the event loop, in seconds."""

    opened: float
    closed: float | None = None
    closed_by: Literal["client", "server"] | None = None
    is_closed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Exchange:
    """One request as the server received it, and the methods to answer it byte by byte."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: Connection
    writer: asyncio.StreamWriter
    headers_of_all: dict[str, str]
    """Additional headers of every response."""
    is_last: bool = False
    """Whether the connection closes after the answer, as the client asked, or because it speaks HTTP/1.0."""
    is_chunked: bool = True
    """Whether the body is sent in chunks; otherwise its length, or the end of the connection, ends it."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection is closed, by either side."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection is closed, or when the answer has been sent completely."""

    @property
    def json(self) -> Any:
        """The request's body, decoded from JSON."""
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
        self.is_chunked = self.is_chunked and "content-length" not in headers
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Scripted')}", f"content-type: {content_type}"]
        lines += ["transfer-encoding: chunked"] if self.is_chunked else []
        lines += ["connection: close"] if self.is_last else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in {**self.headers_of_all, **headers}.items()]
        await self._send("\r\n".join([*lines, "", ""]).encode())

    async def write(self, data: bytes) -> None:
        """Send bytes of the body."""
        if data:  # an empty chunk would end the body
            await self._send(b"%x\r\n%b\r\n" % (len(data), data) if self.is_chunked else data)

    async def events(self, *payloads: object) -> None:
        """Send server-sent events; a string is sent as it is, and everything else as JSON."""
        for payload in payloads:
            text = payload if isinstance(payload, str) else json.dumps(payload)
            await self.write(f"data: {text}\n\n".encode())

    async def end(self) -> None:
        """End the body; the connection can be used again."""
        await self._send(b"0\r\n\r\n" if self.is_chunked else b"")
        self.over.set()

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, in one segment if they fit; do not wait until the client reads them."""
        self.writer.write(data)

    def abort(self) -> None:
        """Break the connection with an RST."""
        self.connection.closed_by = "server"
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Close the connection with a FIN, without ending the body."""
        self.connection.closed_by = "server"
        self.writer.close()

    def set_gone(self, _: object) -> None:
        """Note that nothing more can be sent."""
        self.gone.set()
        self.over.set()

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0)  # draining alone does not let a client in the same loop run


Script = Callable[[Exchange], Awaitable[None]]


class ScriptedServer:
    """Calls `answer` for each request; `connections` records each connection, and which side closed it."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.headers: dict[str, str] = {}
        """Additional headers of every response."""
        self.connections: list[Connection] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def origin(self) -> str:
        """Scheme, host and port of the server."""
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, self._port, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        # asyncio forgets, but does not close, a connection that it is accepting when its server closes.
        for listener in self._server.sockets:
            with contextlib.suppress(NotImplementedError):  # on Windows
                asyncio.get_running_loop().remove_reader(listener.fileno())
        for __ in range(_TURNS):
            await asyncio.sleep(0)
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        for writer in self._writers:  # closing waits for a client that does not read
            writer.transport.abort()

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request; for subclasses."""
        raise NotImplementedError

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio would make a task of a coroutine, but nobody would close the connection of one that has not begun.
        self._writers.add(writer)
        handler = asyncio.create_task(self._handle(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        connection = Connection(opened=now())
        self.connections.append(connection)
        # A browser may keep its connection open when the server stops.
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, EOFError, h11.RemoteProtocolError):
            start = await reader.read(1)
            while start:
                exchange, sent_ahead = await self._read(start, connection, reader, writer)
                next_byte = asyncio.create_task(reader.read(1))
                next_byte.add_done_callback(exchange.set_gone)
                with contextlib.suppress(ConnectionError):
                    await self.answer(exchange)
                if sent_ahead or exchange.is_last:  # a client that sent a request ahead must send it again
                    break
                start = await next_byte
        connection.closed_by = connection.closed_by or "client"
        connection.closed = now()
        connection.is_closed.set()

    async def _read(
        self, start: bytes, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Exchange, bytes]:
        """Read one request, and return it with the bytes after it."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        parser.receive_data(start)
        request: h11.Request | None = None
        body = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA:
                if parser.they_are_waiting_for_100_continue:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                parser.receive_data(await reader.read(_READ_BYTES))
            else:
                raise EOFError
        assert request is not None  # noqa: S101  # h11 gives it first
        # Of headers with the same name, the first counts, as it does for Parley.
        headers = {name.decode(): value.decode("latin-1") for name, value in reversed(list(request.headers))}
        method, path = request.method.decode(), request.target.decode()
        exchange = Exchange(method, path, headers, body, connection, writer, self.headers)
        exchange.is_chunked = request.http_version != b"1.0"
        exchange.is_last = not exchange.is_chunked or headers.get("connection", "").lower() == "close"
        return exchange, parser.trailing_data[0]
