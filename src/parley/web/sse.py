"""Stream a reply: turn events into chunks, and send them as they come."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from litestar.response import ServerSentEvent

from parley.chat.events import ReplyAdmitted, ReplyFailed, ReplyFinished, ReplyReasoning, ReplyStarted, ReplyText
from parley.web.errors import ClientDisconnectedError
from parley.wire.encoding import PING, encode_frame
from parley.wire.headers import STREAM_HEADERS
from parley.wire.schema import DoneChunk, ErrorChunk, ErrorResponse, ReasoningChunk, StartChunk, StreamChunk, TextChunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from litestar.types import ASGIApp, Receive, Scope, Send

    from parley.chat.events import Event
    from parley.chat.record import Record

ChunkT = TypeVar("ChunkT")

_HEADERS: Final = tuple(
    (name.encode(), value.encode()) for name, value in {**STREAM_HEADERS, "connection": "keep-alive"}.items()
)

_LAST: Final = (ReplyFinished, ReplyFailed)


def _chunk(event: ReplyStarted | ReplyReasoning | ReplyFinished | ReplyFailed, seq: int, record: Record) -> StreamChunk:
    match event:
        case ReplyReasoning():
            return ReasoningChunk(seq=seq, text=event.text)
        case ReplyStarted():
            return StartChunk(seq=seq, correlation_id=record.correlation_id, model=event.model)
        case ReplyFinished():
            record.outcome = "completed"
            return DoneChunk(seq=seq, finish_reason=event.finish_reason, usage=event.usage, timing=event.timing)
        case ReplyFailed():
            record.fail(event.error)
            return ErrorChunk(seq=seq, error=ErrorResponse.of(event.error, record.correlation_id), usage=event.usage)


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive, record: Record) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the block if the client disconnects, and record that; the request's body must have been read before."""
    try:
        async with asyncio.timeout(None) as client:
            watching = asyncio.create_task(_cancel_on_disconnect(receive, client))
            try:
                yield client
            finally:
                watching.cancel()
    except TimeoutError:
        if not client.expired():
            raise
        record.outcome = "client_disconnected"


async def _cancel_on_disconnect(receive: Receive, client: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    client.reschedule(0)


class EventStream(ServerSentEvent, Generic[ChunkT]):
    """A reply as server-sent events; the headers wait for the first token, so that an earlier failure is an HTTP error.

    The response reads the events and closes their generator, however the reply ends.
    """

    def __init__(self, events: AsyncGenerator[Event, None], *, hold_headers_s: float, heartbeat_s: float) -> None:
        """Take the events of a reply; the response closes their generator.

        `hold_headers_s` is the longest time that the headers wait after the reply has left the queue, and `heartbeat_s`
        is the longest silence after the headers, both in seconds.
        """
        # Not Litestar's `__init__`: its state is for what Litestar would send.
        self._events = events
        self._hold_headers_s = hold_headers_s
        self._heartbeat_s = heartbeat_s
        self._is_open = False
        self._last_sent = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._ping: asyncio.Task[None] | None = None

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]  # all that Litestar needs
        """Return the ASGI app that sends the response."""
        return self._respond

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the chunks as they come."""
        record: Record = scope["state"]["record"]
        seq = 0
        frames = b""
        try:
            async with (
                cancelled_on_disconnect(receive, record) as client,
                self._no_beats_after(),
                aclosing(self._events) as events,
            ):
                async for event in events:
                    if isinstance(event, ReplyAdmitted):
                        self._timer = self._loop.call_later(self._hold_headers_s, self._beat, send)
                        continue
                    if isinstance(event, ReplyFailed) and not self._is_open:
                        raise event.error
                    if isinstance(event, ReplyText):  # the most frequent event
                        chunk: StreamChunk = TextChunk(seq=seq, text=event.text)
                    else:
                        chunk = _chunk(event, seq, record)
                    frames += encode_frame(chunk)
                    seq += 1
                    if not isinstance(event, ReplyStarted):  # `start` is sent together with the next chunk
                        if not self._is_open:
                            await self._open(send)
                        self._last_sent = self._loop.time()
                        more = not isinstance(event, _LAST)
                        await send({"type": "http.response.body", "body": frames, "more_body": more})
                        frames = b""
        finally:
            record.chunks = seq
        if client.expired() and not self._is_open:
            raise ClientDisconnectedError

    async def _open(self, send: Send) -> None:
        self._is_open = True
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": _HEADERS})

    async def _send_ping(self, send: Send) -> None:
        if not self._is_open:
            await self._open(send)
        self._last_sent = self._loop.time()
        await send({"type": "http.response.body", "body": PING, "more_body": True})

    def _beat(self, send: Send) -> None:
        """Send a comment if one is due, after the headers if they still wait; look again when the next may be due."""
        due_s = self._last_sent + self._heartbeat_s - self._loop.time() if self._is_open else 0
        if due_s <= 0:
            due_s = self._heartbeat_s
            if self._ping is None or self._ping.done():
                self._ping = self._loop.create_task(self._send_ping(send))
        self._timer = self._loop.call_later(due_s, self._beat, send)

    @asynccontextmanager
    async def _no_beats_after(self) -> AsyncIterator[None]:
        """Stop the heartbeat at the end of the block."""
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._ping is not None:
                self._ping.cancel()
                with suppress(asyncio.CancelledError):
                    await self._ping
