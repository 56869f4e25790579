"""Owns a client's connection: uvicorn's, with deadlines for what the client has to do, and errors as everywhere."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

import h11
import msgspec
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from parley.chat.errors import ChatError, ErrorCode
from parley.telemetry import request_log
from parley.telemetry.correlation import HEADER, correlation_id_of, new_correlation_id
from parley.telemetry.request_log import RequestLog
from parley.web.schema import ErrorResponse

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_log: Final = structlog.stdlib.get_logger(__name__)

# What may be on its way to a client that does not read: a stream's text is small, and memory is for those who do.
_SEND_BUFFER_BYTES: Final = 65_536


class Connection(H11Protocol):
    """Cuts off clients that send a request too slowly, or nothing, and those that take nothing of an answer."""

    def __init__(self, *, read_timeout_s: float, write_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._reading = _Deadline(self, "request", read_timeout_s)
        self._writing = _Deadline(self, "client", write_timeout_s)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that the write deadline runs for whatever is not taken
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        # asyncio sets this only if it created the listening socket. Without it, a chunk can wait up to 40 ms for the
        # client's acknowledgement of the previous chunk.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reading.start()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; the time for the whole runs from its first byte."""
        self._reading.start()
        super().data_received(data)

    def handle_events(self) -> None:
        """Take what is complete, also of a request that waited for the answer to the one before it."""
        super().handle_events()
        if self.conn.their_state is h11.SEND_BODY:
            self._reading.start()
        elif self.conn.their_state is not h11.IDLE:
            self._reading.clear()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's words
        """Refuse what is no HTTP, as any other bad request; within an answer there is no place for another."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        error = ChatError(ErrorCode.INVALID_REQUEST, detail="It is no HTTP request, or its headers are too long.")
        correlation_id = self.correlation_id() or new_correlation_id()
        headers = [
            (b"content-type", b"application/json"),
            (HEADER, correlation_id.encode()),
            (b"connection", b"close"),
        ]
        body = msgspec.json.encode(ErrorResponse.of(error, correlation_id))
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        answered: dict[str, Any] = {
            "outcome": "failed",
            "status": 400,
            "error_code": error.code,
            "reason": None,
            "bytes_out": len(body),
        }
        if (cycle := self._cycle()) is not None:
            cycle.disconnected = True  # who serves the request that this is part of has nobody left to answer
            cycle.scope["state"]["answered"] = answered  # and says so in the request's line
        else:
            request_log.write(RequestLog(correlation_id=correlation_id, bytes_in=0, total_ms=0, **answered))

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
        cycle = self._cycle()
        return None if cycle is None else correlation_id_of(cycle.scope)

    def _cycle(self) -> RequestResponseCycle | None:
        """Return the request that is being answered, if one is; uvicorn declares the last one as always there."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as if it had not asked for another protocol."""


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
