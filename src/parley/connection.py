"""A client's connection: uvicorn's protocol with limits on input, deadlines, and Parley's error responses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.record import Record
from parley.client_deadlines import Deadline, ProgressDeadline
from parley.refusal import Refusal
from parley.request_parser import RefusedRequestError, ServerConnection
from parley.telemetry import request_log
from parley.telemetry.correlation import record_of
from parley.transport import ClientTransport, Flow, Lingering, Reader, prepare, reset, unread_bytes
from parley.web.keys import FULL
from parley.wire.correlation import new_correlation_id

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

    from parley.descriptors import ConnectionLimit

_log: Final = structlog.stdlib.get_logger(__name__)

# Maximum bytes that wait to be parsed: the start of a body, or requests sent before the current one is answered.
_HELD_BYTES: Final = 65_536

_NOT_HTTP: Final = "This is not an HTTP request, or its headers are too long."


class Connection(H11Protocol):
    """The server side of one client's connection; limits the time and memory that the client can use."""

    def __init__(
        self, *, read_timeout_s: float, write_timeout_s: float, limit: ConnectionLimit, **options: Any
    ) -> None:
        super().__init__(**options)
        self.conn: ServerConnection = ServerConnection()
        self._reading = Deadline(self.loop, read_timeout_s, lambda: self._time_out("request"))
        self._write_timeout_s = write_timeout_s
        self._limit = limit
        self.is_reserved = False
        self.app_state = {**self.app_state, "end_early": self._end_early}
        self._lingering: Lingering | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, or abort the connection if there is no room."""
        self._wire = transport
        self._writing = ProgressDeadline(
            self.loop, self._write_timeout_s, lambda: self._time_out("client"), lambda: unread_bytes(transport)
        )
        wrapped = ClientTransport(transport, self.is_closing, self.close)
        super().connection_made(wrapped)  # type: ignore[arg-type]
        self.flow = Flow(transport, self._read_body)
        prepare(transport)
        transport.set_protocol(Reader(self, transport, self.loop))
        self._reading.start()
        self.is_reserved = not self._limit.admit(len(self.connections))
        if self.is_reserved and not self._limit.admit_reserved(len(self.connections)):
            transport.abort()
        self._note_idle()

    # What the client sends.

    def data_received(self, data: bytes) -> None:
        """Receive a part of a request; the deadline for the whole request runs from its first byte."""
        if self._lingering is not None:
            self._lingering.discard(data)
            return
        self._reading.start()
        super().data_received(data)
        if self.is_closing():
            return
        is_full = self.conn.held_bytes > _HELD_BYTES
        if self.conn.is_request_whole:
            if is_full or self.conn.is_budget_spent:
                # Cut rather than pause: if Parley stopped reading, it would not notice when the client leaves.
                _log.info("connection_cut", reason="sent_ahead", correlation_id=self.correlation_id())
                self._cut()
        elif is_full:
            self.flow.pause_reading()  # until the app reads the body, or refuses the request

    def handle_events(self) -> None:
        """Handle all complete events, including those of a request that waited for the previous response."""
        if self.is_reserved:
            self.is_reserved = self._limit.is_reached(len(self.connections))
            self.app_state[FULL] = self.is_reserved
            self.conn.is_last_request = self.is_reserved
        super().handle_events()
        if self._cycle() is not None:
            self._limit.note_busy(self)
        if self.conn.their_state is h11.SEND_BODY or (self.conn.their_state is h11.IDLE and self.conn.held_bytes):
            self._reading.start()
        elif self.conn.their_state is not h11.IDLE:
            self._reading.clear()

    def _read_body(self) -> None:
        """Parse the body, because the app has asked for it."""
        if self.conn.their_state is h11.SEND_BODY and self._cycle() is not None:
            self.conn.want_body()
            self.handle_events()

    def eof_received(self) -> None:
        """Treat a half-closed connection as closed: Parley cannot tell whether the client still reads."""
        if self._cycle() is not None:
            self._wire.abort()  # otherwise unsent data would keep the transport open, and the model waiting

    # What the client receives.

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's text, which Parley does not send
        """Send Parley's own error for a request that h11 or Parley cannot accept."""
        refused = sys.exception()
        if isinstance(refused, RefusedRequestError):
            self.refuse(ChatError(ErrorCode.INVALID_REQUEST, detail=str(refused)), refused.error_status_hint)
        else:
            self.refuse(ChatError(ErrorCode.INVALID_REQUEST, detail=_NOT_HTTP))

    def refuse(self, error: ChatError, status: int | None = None) -> None:
        """Send an error response in place of the app, and close; if a response has begun, cut the connection."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self._cut()
            return
        cycle = self._cycle()
        correlation_id = self.correlation_id() or new_correlation_id()
        refusal = Refusal(error, status, correlation_id, has_body=cycle is None or cycle.scope["method"] != "HEAD")
        for event in refusal.events:
            self._wire.write(self.conn.send(event) or b"")
        if cycle is not None:
            # The app fills in the request's record when it ends.
            cycle.scope["state"]["answered"] = refusal.note
            cycle.disconnected = cycle.response_started = cycle.response_complete = True
            cycle.message_event.set()
        else:
            record = Record(correlation_id=correlation_id)
            refusal.note(record)
            request_log.write(record)
        self.close()

    def _end_early(self, state: dict[str, Any]) -> None:
        """Answer with `shutting_down` if no response has begun; otherwise reset the connection.

        `state` is the request's state; if that request has had its whole response, do nothing.
        """
        if self.is_closing():  # uvloop raises an error on a write to a client that has left
            return
        if (cycle := self._cycle()) is not None and cycle.scope["state"] is state:
            self.refuse(ChatError(ErrorCode.SHUTTING_DOWN))

    def pause_writing(self) -> None:
        """Start the write deadline."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """Stop the write deadline: the client has received all buffered data."""
        super().resume_writing()
        self._writing.clear()
        self._note_idle()

    def on_response_complete(self) -> None:
        """Continue with the next request, if it has arrived."""
        super().on_response_complete()
        self._note_idle()

    # How the connection ends.

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; while the client still has to receive data, wait for another keep-alive period."""
        if self.flow.write_paused:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Close the connection, after the current response if there is one."""
        if self._lingering is None:
            super().shutdown()
        else:
            self._wire.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._reading.clear()
        self._writing.clear()
        if self._lingering is not None:
            self._lingering.stop()
        super().connection_lost(exc)
        self._limit.leave(self, len(self.connections))

    def is_closing(self) -> bool:
        """Return whether the connection is closing, so that no more responses can be sent."""
        return self._lingering is not None or self._wire.is_closing()

    def close(self) -> None:
        """Close so that the client receives a complete response; cut a partial one, so that it does not look whole."""
        if self.is_closing():
            return
        if self._cycle() is not None:
            self._cut()
        elif self.conn.is_request_whole and not self.conn.held_bytes:
            self._wire.close()
        else:
            self._reading.clear()
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
            self._lingering = Lingering(self._wire, self.loop)
            self._note_idle()

    def _time_out(self, awaited: str) -> None:
        _log.info("connection_timed_out", awaited=awaited, correlation_id=self.correlation_id())
        self._cut()

    def _cut(self) -> None:
        """Break the connection, which cancels its request."""
        if (cycle := self._cycle()) is not None:
            cycle.disconnected = True  # set now, because uvicorn would log an error when it cancels the request
            if cycle.response_started:
                reset(self._wire)  # an HTTP/1.0 client would take a normal close for the end of the response
        self._wire.abort()

    def evict(self) -> None:
        """Close this idle connection, because another one needs its file descriptor."""
        self._wire.abort()

    def _note_idle(self) -> None:
        if self._cycle() is None and not self.flow.write_paused and not self._wire.is_closing():
            self._limit.note_idle(self)

    def correlation_id(self) -> str | None:
        """Return the correlation id of the current request, or `None` if there is no request."""
        cycle = self._cycle()
        return None if cycle is None else record_of(cycle.scope).correlation_id

    def _cycle(self) -> RequestResponseCycle | None:
        """Return the current request, or `None`; uvicorn keeps the last request, and types it as never `None`."""
        cycle: RequestResponseCycle | None = self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: Parley ignores a request's Upgrade header and answers over HTTP/1.1."""
