"""A fake Parley for tests: an in-memory httpx transport that sends scripted answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import httpx
from msgspec import UNSET
from msgspec.structs import replace

from parley.chat.errors import ChatError, ErrorCode
from parley.settings import Settings
from parley.telemetry.correlation import kept_correlation_id, new_correlation_id
from parley.web.encoding import encode_json
from parley.web.errors import NO_BODY, STATUS, headers_of
from parley.web.request import MAX_BODY_BYTES, decode
from parley.web.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    ReasoningChunk,
    StartChunk,
    StreamChunk,
    TextChunk,
    partial_text,
)
from parley.web.sse import encode_frame

_DEFAULTS: Final = Settings()


class FakeParley(httpx.MockTransport):
    """A transport for `httpx.Client` and `httpx.AsyncClient` that sends scripted answers, without a server.

    Each chat gets the next scripted answer; the last answer repeats. A request that Parley would refuse with default
    settings is refused, and uses no answer. `requests` holds the accepted requests. Only `/chat` and `/chat/complete`
    exist, and no key is needed.
    """

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.requests: list[ChatRequest] = []
        self._answers: list[Sequence[StreamChunk] | ChatError] = []

    def answer(self, *chunks: StreamChunk) -> None:
        """Answer with these chunks; if the last is neither `done` nor `error`, the connection breaks after it."""
        self._answers.append(chunks)

    def fail(self, code: ErrorCode, *, retry_after_s: int | None = None) -> None:
        """Answer with an HTTP error."""
        self._answers.append(ChatError(code, retry_after_s=retry_after_s))

    def _respond(self, request: httpx.Request) -> httpx.Response:
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        correlation_id = kept_correlation_id(headers) or new_correlation_id()
        try:
            chat, answer = self._answer(request)
            chunks = _of_request(chat, answer, correlation_id)
            is_stream = _path(request) == "/chat"
            response = (
                _stream(chunks) if is_stream else _complete(chunks, include_reasoning=bool(chat.include_reasoning))
            )
        except ChatError as error:
            response = _refuse(ErrorResponse.of(error, correlation_id))
        response.headers["X-Correlation-ID"] = correlation_id
        return response

    def _answer(self, request: httpx.Request) -> tuple[ChatRequest, Sequence[StreamChunk]]:
        if _path(request) not in {"/chat", "/chat/complete"}:
            raise ChatError(ErrorCode.NOT_FOUND)
        if request.method != "POST":
            raise ChatError(ErrorCode.METHOD_NOT_ALLOWED)
        if len(request.content) > MAX_BODY_BYTES:
            raise ChatError(ErrorCode.PAYLOAD_TOO_LARGE)
        if not request.content:
            raise ChatError(ErrorCode.INVALID_REQUEST, detail=NO_BODY)
        chat = decode(request.content, request.headers.get("Content-Type", ""), ChatRequest)
        chat.to_prompt(_DEFAULTS, caller="")  # raises an error if a value exceeds its ceiling
        if not self._answers:
            raise AssertionError("FakeParley was not told what to answer")
        self.requests.append(chat)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, ChatError):
            raise answer
        return chat, answer


def _path(request: httpx.Request) -> str:
    return request.url.path.rstrip("/")


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


def _stream(chunks: Sequence[StreamChunk]) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, stream=_Frames(chunks))


def _complete(chunks: Sequence[StreamChunk], *, include_reasoning: bool) -> httpx.Response:
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
        case [*pieces, ErrorChunk() as last]:
            text = "".join(chunk.text for chunk in pieces if isinstance(chunk, TextChunk))
            return _refuse(replace(last.error, partial=partial_text(last.error.code, text)))
        case _:
            raise _broken()


def _refuse(error: ErrorResponse) -> httpx.Response:
    response = _json(STATUS[error.code], error)
    response.headers.update(headers_of(error))
    if error.code is ErrorCode.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = "OPTIONS, POST"
    return response


def _json(status: int, body: ChatResponse | ErrorResponse) -> httpx.Response:
    return httpx.Response(status, headers={"Content-Type": "application/json"}, content=encode_json(body))


def _broken() -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError("peer closed connection without sending complete message body")


class _Frames(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a stream, sent frame by frame."""

    def __init__(self, chunks: Sequence[StreamChunk]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield encode_frame(chunk)
        if not self._chunks or not isinstance(self._chunks[-1], DoneChunk | ErrorChunk):
            raise _broken()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for frame in self:
            yield frame
