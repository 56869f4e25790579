"""Owns a client's connection: uvicorn's, with limits for what the client has to do, and errors as everywhere else."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import httptools
import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from parley.chat.errors import ChatError, ErrorCode
from parley.telemetry.correlation import HEADER, new_correlation_id
from parley.web.schema import ErrorResponse

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_log: Final = structlog.stdlib.get_logger(__name__)

# What may be on its way to a client that does not read: a stream's text is small, and memory is for those who do.
_SEND_BUFFER_BYTES: Final = 65_536
_MAX_HEAD_BYTES: Final = 65_536
_FRAMING: Final = {b"content-length", b"transfer-encoding"}


class Connection(HttpToolsProtocol):
    """Cuts off clients that send a request too slowly, or nothing, and those that take nothing of an answer."""

    def __init__(self, *, read_timeout_s: float, write_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._reading = _Deadline(self, "request", read_timeout_s)
        self._writing = _Deadline(self, "client", write_timeout_s)
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that the write deadline runs for whatever is not taken
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._reading.start()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; the time for the whole runs from its first byte, or when its turn comes."""
        if not self._is_answering():
            self._reading.start()
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse()
        if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """Take a request's head."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._head_bytes = 0
        self._reading.clear()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Turn to the next request, of which some may have come already."""
        super().on_response_complete()
        if self._is_answering() and self.cycle.more_body and not self.pipeline:
            self._reading.start()

    def pause_writing(self) -> None:
        """Wait for the client to take something."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """Go on: it has."""
        super().resume_writing()
        self._writing.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._reading.clear()
        self._writing.clear()
        super().connection_lost(exc)

    def correlation_id(self) -> str | None:
        """Return the id of the request that is being answered, if one is."""
        return self.cycle.scope["state"].get("correlation_id") if self._is_answering() else None

    def _is_answering(self) -> bool:
        # Declared as always there, but there is none before the first request.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _refuse(self) -> None:
        """Refuse what is no HTTP, as any other bad request; within an answer there is no place for another."""
        if self._is_answering():
            self.transport.abort()
            return
        error = ChatError(ErrorCode.INVALID_REQUEST, detail="It is no HTTP request, or its headers are too long.")
        correlation_id = new_correlation_id()
        body = msgspec.json.encode(ErrorResponse.of(error, correlation_id))
        head = b"HTTP/1.1 400 Bad Request\r\n%b: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        self.transport.write(head % (HEADER, correlation_id.encode(), len(body)))
        self.transport.write(b"connection: close\r\n\r\n" + body)
        self.transport.close()
        _log.info("request", correlation_id=correlation_id, status=400, outcome="failed", error_code=error.code)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])

    def _decline_upgrade(self, rest: bytes) -> None:
        """Answer as if no other protocol had been asked for, as Java's client and `curl --http2` do of every server.

        httptools takes what follows the head for that protocol, so another parser reads it as the body.
        """
        framing = [name + b": " + value for name, value in self.headers if name in _FRAMING]
        head = [b"POST / HTTP/1.1", *framing, b"Connection: close", b"", b""]
        body = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        self.cycle.more_body = True
        self.cycle.keep_alive = False
        self._reading.start()
        self.parser = httptools.HttpRequestParser(body)
        self.parser.feed_data(b"\r\n".join(head) + rest)


class _Deadline:
    """The time for one thing that a client has to do."""

    def __init__(self, connection: Connection, awaited: str, timeout_s: float) -> None:
        self._connection = connection
        self._awaited = awaited
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Let the time run, where it doesn't already."""
        if self._timer is None:
            self._timer = self._connection.loop.call_later(self._timeout_s, self._cut)

    def clear(self) -> None:
        """Stop the time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self) -> None:
        """Break the connection, which cancels what is served over it."""
        _log.info("connection_timed_out", awaited=self._awaited, correlation_id=self._connection.correlation_id())
        self._connection.transport.abort()
