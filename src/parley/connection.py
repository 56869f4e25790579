"""Owns a client's connection: uvicorn's, with bounds for what the client sends, deadlines, and errors as everywhere."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import h11
import msgspec
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from parley.chat.errors import ChatError, ErrorCode
from parley.deadlines import Deadline, ProgressDeadline
from parley.framing import ReadBudget, RefusedRequestError, ServerConnection
from parley.telemetry import request_log
from parley.telemetry.correlation import HEADER, correlation_id_of, new_correlation_id
from parley.telemetry.request_log import RequestLog
from parley.transport import ClientTransport, Flow
from parley.web.errors import STATUS, headers_of
from parley.web.schema import ErrorResponse

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_log: Final = structlog.stdlib.get_logger(__name__)

# What may be on its way to a client that does not read: a stream's text is small, and memory is for those who do.
_SEND_BUFFER_BYTES: Final = 65_536

# What is parsed before the loop serves others; asyncio's 256 KiB can hold 40,000 chunks.
_READ_BYTES: Final = 16_384

# What may wait to be parsed: the start of a body, or requests that are sent before this one has its response.
_HELD_BYTES: Final = 65_536

# After a refusal, for how long, and how much of, the rest of a request is thrown away. A connection that is closed
# with bytes unread is reset, and the client may lose the response (RFC 9112, 9.6).
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 << 20
_LINGER_BYTES_PER_READ: Final = 4_096
_LINGER_READ_BYTES: Final = 1 << 18

_NOT_HTTP: Final = "It is no HTTP request, or its headers are too long."


class Connection(H11Protocol):
    """Serves one client; what it sends, or does not take, is no other's trouble."""

    def __init__(self, *, read_timeout_s: float, write_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self.conn: ServerConnection = ServerConnection()
        self._reading = Deadline(self.loop, read_timeout_s, lambda: self._time_out("request"))
        self._write_timeout_s = write_timeout_s
        self._discarded: ReadBudget | None = None
        self._lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        self._wire = transport
        self._writing = ProgressDeadline(
            self.loop, self._write_timeout_s, lambda: self._time_out("client"), transport.get_write_buffer_size
        )
        super().connection_made(ClientTransport(transport, self))  # type: ignore[arg-type]
        self.flow = Flow(transport, self._read_body)
        transport.set_write_buffer_limits(0)  # so that the write deadline runs for whatever is not taken
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of asyncio's, on which there is no other way
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        # asyncio sets this only if it created the listening socket. Without it, a chunk can wait up to 40 ms for the
        # client's acknowledgement of the previous chunk.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reading.start()

    # What the client sends.

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; the time for the whole runs from its first byte."""
        if self._discarded is not None:
            self._discarded.spend(len(data))
            if self._discarded.is_spent:
                self._wire.close()
            return
        self._reading.start()
        super().data_received(data)
        is_full = self.conn.held_bytes > _HELD_BYTES
        if self.is_closing():
            return
        if self.conn.is_request_whole:
            if is_full or self.conn.is_budget_spent:
                # Not to read on would be not to notice that the client leaves.
                _log.info("connection_cut", reason="sent_ahead", correlation_id=self.correlation_id())
                self._cut()
        elif is_full:
            self.flow.pause_reading()  # until the app wants the body, or refuses it

    def handle_events(self) -> None:
        """Take what is complete, also of a request that waited for the response to the one before it."""
        super().handle_events()
        if self.conn.their_state is h11.SEND_BODY or (self.conn.their_state is h11.IDLE and self.conn.held_bytes):
            self._reading.start()
        elif self.conn.their_state is not h11.IDLE:
            self._reading.clear()

    def _read_body(self) -> None:
        """Parse the body, which the app asks for."""
        if self.conn.their_state is h11.SEND_BODY and self._cycle() is not None:
            self.conn.want_body()
            self.handle_events()

    def eof_received(self) -> None:
        """Take a client that closes its side for one that has left: it cannot be told from one that has."""
        if self._cycle() is not None:
            self._wire.abort()  # what is not sent yet would keep the transport, and the model, waiting

    # What it gets.

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's words
        """Refuse what is not HTTP, like any other bad request."""
        refused = sys.exception()
        if isinstance(refused, RefusedRequestError):
            self.refuse(ChatError(ErrorCode.INVALID_REQUEST, detail=str(refused)), refused.error_status_hint)
        else:
            self.refuse(ChatError(ErrorCode.INVALID_REQUEST, detail=_NOT_HTTP))

    def refuse(self, error: ChatError, status: int | None = None) -> None:
        """Answer with an error, in place of the app, and close; cut off a response that has begun."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self._cut()
            return
        status = status or STATUS[error.code]
        correlation_id = self.correlation_id() or new_correlation_id()
        problem = ErrorResponse.of(error, correlation_id)
        body = msgspec.json.encode(problem)
        headers = [
            *headers_of(problem).items(),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            (HEADER.decode(), correlation_id),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=status, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self._wire.write(self.conn.send(event) or b"")
        answered: dict[str, Any] = {
            "outcome": "failed",
            "status": status,
            "error_code": error.code,
            "reason": error.reason,
            "bytes_out": len(body),
        }
        if (cycle := self._cycle()) is not None:
            cycle.scope["state"]["answered"] = answered  # for the request's line, which is logged when the app is done
            cycle.disconnected = cycle.response_started = cycle.response_complete = True
            cycle.message_event.set()
        else:
            request_log.write(RequestLog(correlation_id=correlation_id, bytes_in=0, total_ms=0, **answered))
        self.close()

    def pause_writing(self) -> None:
        """Wait for the client to take something."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """Go on: it has."""
        super().resume_writing()
        self._writing.clear()

    # How it ends.

    def timeout_keep_alive_handler(self) -> None:
        """Close what is not used any more; the time for that runs from when the client has the whole response."""
        if self.flow.write_paused:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Close, or do so after the response under way."""
        if self._discarded is None:
            super().shutdown()
        else:
            self._wire.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._reading.clear()
        self._writing.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def is_closing(self) -> bool:
        """Tell whether no more responses can be sent."""
        return self._discarded is not None or self._wire.is_closing()

    def close(self) -> None:
        """Close the connection; the client gets what was written before, and never takes a part for the whole."""
        if self.is_closing():
            return
        if self._cycle() is not None:
            self._cut()
        elif self.conn.is_request_whole and not self.conn.held_bytes:
            self._wire.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Say that this is the end, and throw away what still comes until the client closes, too."""
        self._discarded = ReadBudget(_LINGER_BYTES, _LINGER_BYTES_PER_READ)
        self._reading.clear()
        self._unset_keepalive_if_required()
        with suppress(OSError):  # the client has gone
            self._wire.write_eof()
        self._wire.max_size = _LINGER_READ_BYTES  # type: ignore[attr-defined]  # as above
        self.flow.resume_reading()
        self._lingering = self.loop.call_later(_LINGER_S, self._stop_lingering)

    def _stop_lingering(self) -> None:
        if self.flow.write_paused:  # the client is still reading, within the deadline for that
            self._lingering = self.loop.call_later(_LINGER_S, self._stop_lingering)
        else:
            self._wire.close()

    def _time_out(self, awaited: str) -> None:
        _log.info("connection_timed_out", awaited=awaited, correlation_id=self.correlation_id())
        self._cut()

    def _cut(self) -> None:
        """Break the connection, which cancels what is served over it."""
        if (cycle := self._cycle()) is not None and cycle.response_started:
            # By a reset: to a client of HTTP/1.0, whose responses end with the connection, this one would look whole.
            connection: socket.socket = self._wire.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._wire.abort()

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
