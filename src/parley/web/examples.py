"""The contract's examples: requests, chunks, answers and errors as they go over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason, Timing, Usage, UsageSource
from parley.wire.encoding import encode_frame
from parley.wire.errors import STATUS
from parley.wire.info import Info, Limits
from parley.wire.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    Health,
    HistoryTurn,
    StartChunk,
    StreamChunk,
    TextChunk,
)

_CORRELATION_ID: Final = "dbe688a500de49e49b06437065c5466b"
_MODEL: Final = "smollm2-135m-instruct"
_USAGE: Final = Usage(input_tokens=31, output_tokens=8, total_tokens=39, source=UsageSource.UPSTREAM)
_TIMING: Final = Timing(first_token_ms=301, total_ms=378)


# Errors that are never sent with only the default texts of their code.
_ERRORS_WITH_DETAILS: Final[Mapping[ErrorCode, ChatError]] = {
    ErrorCode.INVALID_REQUEST: ChatError(
        ErrorCode.INVALID_REQUEST, detail="`/message` must not be blank, nor hold a NUL character."
    ),
    ErrorCode.RATE_LIMITED: ChatError(
        ErrorCode.RATE_LIMITED, detail="This client has used up its requests for this minute.", retry_after_s=12
    ),
    ErrorCode.OVERLOADED: ChatError(ErrorCode.OVERLOADED, retry_after_s=2),
}


def _error(code: ErrorCode) -> ErrorResponse:
    return ErrorResponse.of(_ERRORS_WITH_DETAILS.get(code) or ChatError(code), _CORRELATION_ID)


_REQUESTS: Final[Mapping[str, ChatRequest]] = {
    "question": ChatRequest(message="What is the capital of France?"),
    "conversation": ChatRequest(
        message="And of Italy?",
        history=[
            HistoryTurn("user", "What is the capital of France?"),
            HistoryTurn("assistant", "The capital of France is Paris."),
        ],
        max_output_tokens=200,
        timeout_s=20,
    ),
}
_CHUNKS: Final[Mapping[str, StreamChunk]] = {
    "start": StartChunk(seq=0, correlation_id=_CORRELATION_ID, model=_MODEL),
    "text": TextChunk(seq=1, text="The capital"),
    "done": DoneChunk(seq=8, finish_reason=FinishReason.STOP, usage=_USAGE, timing=_TIMING),
    "error": ErrorChunk(seq=3, error=_error(ErrorCode.UPSTREAM_TRUNCATED), usage=Usage.estimate(2)),
}
_WHOLE: Final = (
    _CHUNKS["start"],
    *(TextChunk(seq=seq, text=text) for seq, text in enumerate(("The capital", " of France", " is Paris."), start=1)),
    DoneChunk(seq=4, finish_reason=FinishReason.STOP, usage=_USAGE, timing=_TIMING),
)
STREAM: Final = b"".join(map(encode_frame, _WHOLE)).decode().rstrip()
"""A whole stream, as it goes over the wire."""
_ANSWER: Final = ChatResponse(
    text="The capital of France is Paris.",
    finish_reason=FinishReason.STOP,
    usage=_USAGE,
    timing=_TIMING,
    model=_MODEL,
    correlation_id=_CORRELATION_ID,
)
_INCOMPLETE: Final = {
    "incomplete": ErrorResponse.of(
        ChatError(ErrorCode.UPSTREAM_TRUNCATED), _CORRELATION_ID, partial="The capital of France"
    )
}
_INFO: Final = Info(
    model="gpt-5-mini",
    fallback_model=_MODEL,
    limits=Limits(
        max_output_tokens=2000,
        timeout_s=30,
        message_characters=32_000,
        history_turns=200,
        body_bytes=1 << 20,
        requests_per_minute=60,
        open_requests=None,
        tokens_per_minute=None,
    ),
    version="0.2.0",
)
_NOT_READY: Final = Health(status="not_ready", reason=ErrorCode.UPSTREAM_UNREACHABLE)


def bodies(shape: str, status: int | None, operation: str | None) -> Mapping[str, object]:
    """Return the examples of this shape, by name, for this operation's response with this status."""
    match shape:
        case "ChatRequest":
            return _REQUESTS
        case "StreamChunk":
            return _CHUNKS
        case "ChatResponse":
            return {"answer": _ANSWER}
        case "Health":
            return {} if status == HTTPStatus.OK else {"not_ready": _NOT_READY}
        case "Info":
            return {"info": _INFO}
        case _:
            errors = {str(code): _error(code) for code in ErrorCode if STATUS[code] == status}
            return errors | _INCOMPLETE if operation == "completeChat" and status == HTTPStatus.BAD_GATEWAY else errors
