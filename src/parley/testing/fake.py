"""A fake Parley: its scripted answers, and the requests that it received; its subclasses transport them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from parley.chat.errors import ChatError, ErrorCode
from parley.settings import Settings
from parley.testing.replies import Received, Reply, complete, cut, json_reply, of_request, refusal, stream, with_headers
from parley.wire.correlation import HEADER, kept_correlation_id, new_correlation_id
from parley.wire.decoding import decode
from parley.wire.errors import NO_BODY, STATUS, status_of
from parley.wire.info import Info, Limits
from parley.wire.keys import UNKNOWN_KEY
from parley.wire.schema import (
    MAX_BODY_BYTES,
    ChatRequest,
    ErrorResponse,
    Health,
    StreamChunk,
)

_DEFAULTS: Final = Settings()
_CORRELATION_ID: Final = HEADER.decode()
_HEALTH: Final = {
    "/health/live": Health(status="live", reason=None),
    "/health/ready": Health(status="ready", reason=None),
}
_METHODS: Final = {"/chat": "POST", "/chat/complete": "POST", "/info": "GET", **dict.fromkeys(_HEALTH, "GET")}


@dataclass(frozen=True)
class _Failure:
    error: ErrorResponse
    status: int


@dataclass(frozen=True)
class _Answer:
    chunks: Sequence[StreamChunk]
    pace_s: float
    break_at: int | None


class Fake:
    """Scripted answers for the chat operations; `GET /info` returns `info`, and the health checks pass.

    Each chat gets the next scripted answer; the last answer repeats. A request that Parley would refuse with default
    settings is refused, and the answer stays for the next request. `requests` holds the accepted requests; `received`
    holds all requests, with their headers. No key is needed unless the test calls `require_key`.
    """

    def __init__(self) -> None:
        self.info = Info(
            model="fake", fallback_model=None, limits=Limits.of(_DEFAULTS), version=importlib.metadata.version("parley")
        )
        self.requests: list[ChatRequest] = []
        self.received: list[Received] = []
        self._answers: list[_Answer | _Failure | None] = []
        self._keys: set[str] = set()

    def answer(self, *chunks: StreamChunk, pace_s: float = 0, break_at: int | None = None) -> None:
        """Answer with these chunks, `pace_s` seconds apart.

        The connection breaks after the last chunk if that is neither `done` nor `error`, or after `break_at` bytes of
        the body, for example in the middle of a chunk; 0 breaks it after the headers.
        """
        if break_at is not None and break_at < 0:
            raise ValueError("`break_at` must be at least 0.")
        self._answers.append(_Answer(chunks, pace_s, break_at))

    def fail(
        self, error: ErrorCode | ErrorResponse, *, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        """Answer with an HTTP error, given as a code or as a whole body.

        `status` replaces the code's status; a code that Parley does not know needs one. `retry_after_s` applies only to
        an error that is given as a code.
        """
        if isinstance(error, ErrorCode):
            if error not in STATUS:
                raise ValueError(f"Parley has no texts for the code {error}: pass an ErrorResponse.")
            error = ErrorResponse.of(ChatError(error, retry_after_s=retry_after_s), "")
        self._answers.append(_Failure(error, status or status_of(error.code)))

    def drop(self) -> None:
        """Answer by breaking the connection, without a response."""
        self._answers.append(None)

    def require_key(self, key: str) -> None:
        """Refuse requests without this key; after several calls, each of their keys is accepted."""
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
            reply = self._answer(received, received.path.rstrip("/"), correlation_id)
        except ChatError as error:
            reply = refusal(ErrorResponse.of(error, correlation_id), STATUS[error.code])
            if error.code is ErrorCode.METHOD_NOT_ALLOWED:
                reply = with_headers(reply, {"allow": f"{_METHODS[received.path.rstrip('/')]}, OPTIONS"})
        return reply and with_headers(reply, {_CORRELATION_ID: correlation_id})

    def _answer(self, received: Received, path: str, correlation_id: str) -> Reply | None:
        if path not in _METHODS:
            raise ChatError(ErrorCode.NOT_FOUND)
        if received.method != _METHODS[path]:
            raise ChatError(ErrorCode.METHOD_NOT_ALLOWED)
        if path in _HEALTH:
            return json_reply(200, _HEALTH[path])
        if self._keys and received.key not in self._keys:
            raise ChatError(ErrorCode.UNAUTHORIZED, detail=received.key and UNKNOWN_KEY)
        if path == "/info":
            return json_reply(200, self.info)
        chat = _accepted(received)
        if not self._answers:
            raise AssertionError("The fake Parley was not told what to answer: call `answer`, `fail` or `drop`.")
        self.requests.append(chat)
        match self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]:
            case None:
                return None
            case _Failure() as failure:
                return refusal(replace(failure.error, correlation_id=correlation_id), failure.status)
            case _Answer() as answer:
                return _scripted(answer, chat, correlation_id, is_stream=path == "/chat")


def _accepted(received: Received) -> ChatRequest:
    """Return the request in a body, or raise `ChatError` if a Parley with default settings would refuse it."""
    if len(received.body) > MAX_BODY_BYTES:
        raise ChatError(ErrorCode.PAYLOAD_TOO_LARGE)
    if not received.body:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail=NO_BODY)
    chat = decode(received.body, received.headers.get("content-type", ""), ChatRequest)
    chat.to_prompt(_DEFAULTS, caller="")  # raises an error if a value exceeds its ceiling
    return chat


def _scripted(answer: _Answer, chat: ChatRequest, correlation_id: str, *, is_stream: bool) -> Reply:
    chunks = of_request(chat, answer.chunks, correlation_id)
    reply = stream(chunks) if is_stream else complete(chunks, include_reasoning=bool(chat.include_reasoning))
    if answer.break_at is not None:
        reply = dataclasses.replace(reply, pieces=cut(reply.pieces, answer.break_at), is_whole=False)
    return dataclasses.replace(reply, pace_s=answer.pace_s)
