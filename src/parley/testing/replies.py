"""The requests that a fake receives and the replies that it sends, in memory and on a socket alike."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from parley.wire.encoding import encode_frame, encode_json
from parley.wire.errors import headers_of, status_of
from parley.wire.headers import NO_STORE, STREAM_HEADERS
from parley.wire.keys import sent_key
from parley.wire.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    Health,
    ReasoningChunk,
    StartChunk,
    StreamChunk,
    TextChunk,
    partial_text,
)

if TYPE_CHECKING:
    from parley.wire.info import Info


@dataclass
class Received:
    """A request as the fake received it, even if the fake refused it."""

    method: str
    path: str
    headers: Mapping[str, str]
    """The headers, with their names in lower case."""
    body: bytes
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the client closes the connection before the end of the answer."""

    @property
    def key(self) -> str | None:
        """The API key that the client sent; `None` if it sent none."""
        return sent_key(self.headers.get("authorization", ""))


@dataclass(frozen=True)
class Reply:
    """A response, ready to be sent."""

    status: int
    headers: Mapping[str, str]
    pieces: Sequence[bytes]
    """The body, in the pieces in which it is sent."""
    pace_s: float = 0
    """Seconds before each piece, except the first."""
    is_whole: bool = True
    """Whether the response ends after the last piece; otherwise, the connection breaks there."""


def with_headers(reply: Reply, headers: Mapping[str, str]) -> Reply:
    """Return the reply with these headers added."""
    return dataclasses.replace(reply, headers={**reply.headers, **headers})


def of_request(chat: ChatRequest, chunks: Sequence[StreamChunk], correlation_id: str) -> list[StreamChunk]:
    """Return an answer's chunks for this request: with its correlation ID, and with reasoning only if requested."""
    if not chat.include_reasoning and any(isinstance(chunk, ReasoningChunk) for chunk in chunks):
        kept = (chunk for chunk in chunks if not isinstance(chunk, ReasoningChunk))
        chunks = [replace(chunk, seq=number) for number, chunk in enumerate(kept)]
    return [_with_id(chunk, correlation_id) for chunk in chunks]


def _with_id(chunk: StreamChunk, correlation_id: str) -> StreamChunk:
    match chunk:
        case StartChunk():
            return replace(chunk, correlation_id=correlation_id)
        case ErrorChunk():
            return replace(chunk, error=replace(chunk.error, correlation_id=correlation_id))
        case _:
            return chunk


def stream(chunks: Sequence[StreamChunk]) -> Reply:
    """Return the reply that streams these chunks; without `done` or `error`, the connection breaks after them."""
    frames = [encode_frame(chunk) for chunk in chunks]
    is_whole = bool(chunks) and isinstance(chunks[-1], DoneChunk | ErrorChunk)
    return Reply(200, STREAM_HEADERS, frames, is_whole=is_whole)


def cut(pieces: Sequence[bytes], size: int) -> list[bytes]:
    """Return the first `size` bytes of a body, in the same pieces."""
    kept = []
    for piece in pieces:
        kept.append(piece[:size])
        size -= len(kept[-1])
    return [piece for piece in kept if piece]


def complete(chunks: Sequence[StreamChunk], *, include_reasoning: bool) -> Reply:
    """Return the reply that has these chunks as one answer; without `done` or `error`, the connection breaks."""
    match chunks:
        case [StartChunk() as start, *pieces, DoneChunk() as done]:
            thoughts = "".join(chunk.text for chunk in pieces if isinstance(chunk, ReasoningChunk))
            whole = ChatResponse(
                text="".join(chunk.text for chunk in pieces if isinstance(chunk, TextChunk)),
                reasoning=thoughts if include_reasoning else UNSET,
                finish_reason=done.finish_reason,
                usage=done.usage,
                timing=done.timing,
                model=start.model,
                correlation_id=start.correlation_id,
            )
            return json_reply(200, whole)
        case [*pieces, ErrorChunk() as last]:
            text = "".join(chunk.text for chunk in pieces if isinstance(chunk, TextChunk))
            error = replace(last.error, partial=partial_text(last.error.code, text))
            return refusal(error, status_of(error.code))
        case _:
            return Reply(200, {"content-type": "application/json", "cache-control": NO_STORE}, [], is_whole=False)


def refusal(error: ErrorResponse, status: int) -> Reply:
    """Return the reply for an HTTP error."""
    return with_headers(json_reply(status, error), headers_of(error))


def json_reply(status: int, body: ChatResponse | ErrorResponse | Health | Info) -> Reply:
    """Return a reply with a body in JSON."""
    data = encode_json(body)
    headers = {"content-type": "application/json", "content-length": str(len(data)), "cache-control": NO_STORE}
    return Reply(status, headers, [data])
