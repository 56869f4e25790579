"""Owns the stream's way out: events to chunks, chunks to frames, and the response that sends them as they come."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import anyio
import msgspec
import structlog
from litestar.response import ServerSentEvent
from litestar.response.streaming import ASGIStreamingResponse

from parley.chat.events import ReplyFailed, ReplyFinished, ReplyStarted, ReplyText
from parley.web.errors import ClientDisconnectedError
from parley.web.schema import DoneChunk, ErrorChunk, ErrorResponse, StartChunk, StreamChunk, TextChunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from litestar import Litestar, Request
    from litestar.types import Receive, Scope, Send

    from parley.chat.events import Event

ChunkT = TypeVar("ChunkT")

_encoder: Final = msgspec.json.Encoder()


def encode_frame(chunk: StreamChunk) -> bytes:
    """Encode a chunk as one server-sent event; JSON has no line ends of its own, so one data line holds it."""
    kind = str(chunk.__struct_config__.tag).encode()
    return b"event: %b\ndata: %b\n\n" % (kind, _encoder.encode(chunk))


async def frames(events: AsyncGenerator[Event, None], correlation_id: str) -> AsyncGenerator[bytes, None]:
    """Yield the frame of each event of a reply.

    Raises:
        ChatError: where the reply failed before it started: nothing is sent yet, so it can be an HTTP error.
    """
    seq = 0
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, ReplyFailed) and seq == 0:
                    raise event.error
                yield encode_frame(_chunk(event, seq, correlation_id))
                seq += 1
    finally:
        structlog.contextvars.bind_contextvars(chunks=seq)


def _chunk(event: Event, seq: int, correlation_id: str) -> StreamChunk:
    match event:
        case ReplyText():
            return TextChunk(seq=seq, text=event.text)
        case ReplyStarted():
            return StartChunk(seq=seq, correlation_id=correlation_id, model=event.model)
        case ReplyFinished():
            structlog.contextvars.bind_contextvars(outcome="completed")
            return DoneChunk(seq=seq, finish_reason=event.finish_reason, usage=event.usage, timing=event.timing)
        case ReplyFailed():
            structlog.contextvars.bind_contextvars(
                outcome="failed", error_code=event.error.code, upstream_status=event.error.upstream_status
            )
            return ErrorChunk(seq=seq, error=ErrorResponse.of(event.error, correlation_id), usage=event.usage)


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[anyio.CancelScope]:
    """Cancel the body when the client goes, and say so in the request's log line; the request must have been read."""
    with anyio.CancelScope() as scope:
        listener = asyncio.create_task(_cancel_on_disconnect(receive, scope))
        try:
            yield scope
        finally:
            listener.cancel()
            with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
                await listener
    if scope.cancelled_caught:
        structlog.contextvars.bind_contextvars(outcome="client_disconnected")


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class EventStream(ServerSentEvent, Generic[ChunkT]):
    """A stream of chunks as server-sent events, whose headers wait for the first of them."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        """Take frames that are already encoded; the response closes their generator."""
        super().__init__(())
        self._frames = frames

    def to_asgi_response(
        self,
        app: Litestar | None,  # noqa: ARG002  # Litestar passes it by name
        request: Request[Any, Any, Any],  # noqa: ARG002  # likewise
        *,
        headers: dict[str, str] | None = None,
        status_code: int | None = None,
        **_: Any,
    ) -> ASGIStreamingResponse:
        """Make the response that streams."""
        return _EventStreamResponse(
            iterator=self._frames,
            headers={**(headers or {}), **self.headers},
            media_type=self.media_type,
            status_code=status_code,
        )


class _EventStreamResponse(ASGIStreamingResponse):
    """Owns the frames from the first to the close, whoever ends them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        frames: Any = self.iterator
        started = False
        async with cancelled_on_disconnect(receive) as client, aclosing(frames):
            first = await anext(frames)
            started = True
            await self.start_response(send)
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        if client.cancelled_caught and not started:
            raise ClientDisconnectedError
