"""A fake Parley: scripted answers, and the requests that it received; how these travel is for its subclasses."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from parley.chat.errors import ChatError, ErrorCode
from parley.settings import Settings
from parley.wire.correlation import HEADER, kept_correlation_id, new_correlation_id
from parley.wire.decoding import MAX_BODY_BYTES, decode
from parley.wire.encoding import encode_frame, encode_json
from parley.wire.errors import NO_BODY, STATUS, headers_of
from parley.wire.keys import UNKNOWN_KEY, sent_key
from parley.wire.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    ReasoningChunk,
    StartChunk,
    StreamChunk,
    TextChunk,
)

_DEFAULTS: Final = Settings()
_CORRELATION_ID: Final = HEADER.decode()


@dataclass
class Received:
    """A request as the fake received it, also if the fake refused it."""

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


@dataclass(frozen=True)
class _Answer:
    chunks: Sequence[StreamChunk]
    pace_s: float
    break_at: int | None


class Fake:
    """Scripted answers for the chat operations.

    Each chat gets the next scripted answer; the last answer repeats. A request that Parley would refuse with default
    settings is refused, and uses no answer. `requests` holds the accepted requests, `received` holds all of them with
    their headers. No key is needed unless the test calls `require_key`.
    """

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []
        self.received: list[Received] = []
        self._answers: list[_Answer | ChatError | None] = []
        self._keys: set[str] = set()

    def answer(self, *chunks: StreamChunk, pace_s: float = 0, break_at: int | None = None) -> None:
        """Answer with these chunks, `pace_s` seconds apart.

        The connection breaks after the last chunk if that is neither `done` nor `error`, or after `break_at` bytes of
        the body: in the middle of a chunk, for example, or after the headers if it is 0.
        """
        self._answers.append(_Answer(chunks, pace_s, break_at))

    def fail(self, code: ErrorCode, *, retry_after_s: int | None = None) -> None:
        """Answer with an HTTP error."""
        self._answers.append(ChatError(code, retry_after_s=retry_after_s))

    def drop(self) -> None:
        """Break the connection without a response."""
        self._answers.append(None)

    def require_key(self, key: str) -> None:
        """Refuse requests without this key, or another one that was set like this."""
        self._keys.add(key)

    def reply_to(self, received: Received) -> Reply | None:
        """Record a request, and return the reply; `None` breaks the connection without a response.

        Raises:
            AssertionError: if the test has not set an answer.
        """
        self.received.append(received)
        raw = [(name.encode(), value.encode()) for name, value in received.headers.items()]
        correlation_id = kept_correlation_id(raw) or new_correlation_id()
        try:
            reply = self._answer(received, correlation_id)
        except ChatError as error:
            reply = _refusal(ErrorResponse.of(error, correlation_id))
        headers = {_CORRELATION_ID: correlation_id}
        return reply and dataclasses.replace(reply, headers={**reply.headers, **headers})

    def _answer(self, received: Received, correlation_id: str) -> Reply | None:
        path = received.path.rstrip("/")
        if path not in {"/chat", "/chat/complete"}:
            raise ChatError(ErrorCode.NOT_FOUND)
        if received.method != "POST":
            raise ChatError(ErrorCode.METHOD_NOT_ALLOWED)
        if self._keys and received.key not in self._keys:
            raise ChatError(ErrorCode.UNAUTHORIZED, detail=received.key and UNKNOWN_KEY)
        if len(received.body) > MAX_BODY_BYTES:
            raise ChatError(ErrorCode.PAYLOAD_TOO_LARGE)
        if not received.body:
            raise ChatError(ErrorCode.INVALID_REQUEST, detail=NO_BODY)
        chat = decode(received.body, received.headers.get("content-type", ""), ChatRequest)
        chat.to_prompt(_DEFAULTS, caller="")  # raises an error if a value exceeds its ceiling
        if not self._answers:
            raise AssertionError("The fake Parley was not told what to answer: call `answer`, `fail` or `drop`.")
        self.requests.append(chat)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, ChatError):
            raise answer
        if answer is None:
            return None
        chunks = _of_request(chat, answer.chunks, correlation_id)
        reply = _stream(chunks) if path == "/chat" else _complete(chunks, include_reasoning=chat.include_reasoning)
        if answer.break_at is not None:
            reply = dataclasses.replace(reply, pieces=_cut(reply.pieces, answer.break_at), is_whole=False)
        return dataclasses.replace(reply, pace_s=answer.pace_s)


def _of_request(chat: ChatRequest, chunks: Sequence[StreamChunk], correlation_id: str) -> list[StreamChunk]:
    """Return an answer's chunks for this request: with its correlation id, and with reasoning only if requested."""
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


def _stream(chunks: Sequence[StreamChunk]) -> Reply:
    frames = [encode_frame(chunk) for chunk in chunks]
    is_whole = bool(chunks) and isinstance(chunks[-1], DoneChunk | ErrorChunk)
    return Reply(200, {"content-type": "text/event-stream; charset=utf-8"}, frames, is_whole=is_whole)


def _cut(pieces: Sequence[bytes], size: int) -> list[bytes]:
    """Return the first bytes of a body, in the same pieces."""
    kept = []
    for piece in pieces:
        kept.append(piece[:size])
        size -= len(kept[-1])
    return [piece for piece in kept if piece]


def _complete(chunks: Sequence[StreamChunk], *, include_reasoning: bool) -> Reply:
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
            return _json(200, whole)
        case [*_, ErrorChunk() as last]:
            return _refusal(last.error)
        case _:
            return Reply(200, {"content-type": "application/json"}, [], is_whole=False)


def _refusal(error: ErrorResponse) -> Reply:
    allow = {"allow": "OPTIONS, POST"} if error.code is ErrorCode.METHOD_NOT_ALLOWED else {}
    return _json(STATUS[error.code], error, {**headers_of(error), **allow})


def _json(status: int, body: ChatResponse | ErrorResponse, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"content-type": "application/json", **(headers or {})}, [encode_json(body)])
