"""Owns a client's connection: uvicorn's, with bounds for what the client sends, deadlines, and errors as everywhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from parley.chat.errors import ChatError, ErrorCode
from parley.deadlines import Deadline, ProgressDeadline
from parley.framing import RefusedRequestError, ServerConnection
from parley.refusal import Refusal
from parley.telemetry import request_log
from parley.telemetry.correlation import correlation_id_of, new_correlation_id
from parley.telemetry.request_log import RequestLog
from parley.transport import ClientTransport, Flow, Lingering, prepare, reset

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

    from parley.descriptors import Room

_log: Final = structlog.stdlib.get_logger(__name__)

# What may wait to be parsed: the start of a body, or requests that are sent before this one has its response.
_HELD_BYTES: Final = 65_536

_NO_ROOM: Final = "Parley has as many connections as it may."
_NOT_HTTP: Final = "It is no HTTP request, or its headers are too long."


class Connection(H11Protocol):
    """Serves one client; what it sends, or does not take, is no other's trouble."""

    def __init__(self, *, read_timeout_s: float, write_timeout_s: float, room: Room, **options: Any) -> None:
        super().__init__(**options)
        self.conn: ServerConnection = ServerConnection()
        self._reading = Deadline(self.loop, read_timeout_s, lambda: self._time_out("request"))
        self._write_timeout_s = write_timeout_s
        self._room = room
        self.is_extra = False
        self._app = self.app
        self.app_state = {**self.app_state, "end_early": self._end_early}
        self._lingering: Lingering | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request, if there is room."""
        self._wire = transport
        self._writing = ProgressDeadline(
            self.loop, self._write_timeout_s, lambda: self._time_out("client"), transport.get_write_buffer_size
        )
        super().connection_made(ClientTransport(transport, self))  # type: ignore[arg-type]
        self.flow = Flow(transport, self._read_body)
        prepare(transport)
        self._reading.start()
        self.is_extra = not self._room.enter(len(self.connections))
        if self.is_extra and not self._room.enter_extra(len(self.connections)):
            transport.abort()
        self._note_idle()

    # What the client sends.

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; the time for the whole runs from its first byte."""
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
                # Not to read on would be not to notice that the client leaves.
                _log.info("connection_cut", reason="sent_ahead", correlation_id=self.correlation_id())
                self._cut()
        elif is_full:
            self.flow.pause_reading()  # until the app wants the body, or refuses it

    def handle_events(self) -> None:
        """Take what is complete, also of a request that waited for the response to the one before it."""
        if self.is_extra:
            self.is_extra = self._room.is_full(len(self.connections))
            self.app = self._answer_probes if self.is_extra else self._app
        super().handle_events()
        if self._cycle() is not None:
            self._room.note_busy(self)
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

    async def _answer_probes(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer who must know how Parley is, and nobody else."""
        if scope["path"].startswith(request_log.PROBES):
            await self._app(scope, receive, send)
        else:
            self.refuse(ChatError(ErrorCode.OVERLOADED, detail=_NO_ROOM, retry_after_s=1))
            counts = {"correlation_id": correlation_id_of(scope), "bytes_in": 0, "total_ms": 0}
            request_log.write(request_log.request_log(scope, scope["state"]["answered"], **counts))

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
        correlation_id = self.correlation_id() or new_correlation_id()
        refusal = Refusal(error, status, correlation_id)
        for event in refusal.events:
            self._wire.write(self.conn.send(event) or b"")
        if (cycle := self._cycle()) is not None:
            cycle.scope["state"]["answered"] = (
                refusal.logged
            )  # for the request's line, which is logged when the app is done
            cycle.disconnected = cycle.response_started = cycle.response_complete = True
            cycle.message_event.set()
        else:
            request_log.write(RequestLog(correlation_id=correlation_id, bytes_in=0, total_ms=0, **refusal.logged))
        self.close()

    def _end_early(self, state: dict[str, Any]) -> None:
        """Tell the client that its request is not served to the end; if there is no place for that, cut it off.

        `state` is that of the request, which may have its response.
        """
        if (cycle := self._cycle()) is not None and cycle.scope["state"] is state:
            self.refuse(ChatError(ErrorCode.SHUTTING_DOWN))

    def pause_writing(self) -> None:
        """Wait for the client to take something."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """Go on: it has."""
        super().resume_writing()
        self._writing.clear()
        self._note_idle()

    def on_response_complete(self) -> None:
        """Go on to the next request, if that has come."""
        super().on_response_complete()
        self._note_idle()

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
        self._room.leave(self, len(self.connections))

    def is_closing(self) -> bool:
        """Tell whether no more responses can be sent."""
        return self._lingering is not None or self._wire.is_closing()

    def close(self) -> None:
        """Close the connection; the client gets what was written before, and never takes a part for the whole."""
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
        """Break the connection, which cancels what is served over it."""
        if (cycle := self._cycle()) is not None and cycle.response_started:
            reset(self._wire)  # to a client of HTTP/1.0, a response that just ends would look whole
        self._wire.abort()

    def give_way(self) -> None:
        """Close, as others need the room and this connection has no request."""
        self._wire.abort()

    def _note_idle(self) -> None:
        if self._cycle() is None and not self.flow.write_paused and not self._wire.is_closing():
            self._room.note_idle(self)

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
