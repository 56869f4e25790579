"""Owns the names of an upstream's failures: whatever it, or the way to it, does wrong, as one of our error codes."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

import aiohttp
import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason

_MAX_RETRY_AFTER_S: Final = 3600
_NAME: Final = re.compile(r"[a-z_]{1,64}")


class _Problem(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Body(msgspec.Struct):
    error: _Problem = msgspec.field(default_factory=_Problem)


class ReportedError(ChatError):
    """A failure that the upstream reports in the middle of its answer, in these words."""

    def __init__(self, body: bytes) -> None:
        super().__init__(ErrorCode.UPSTREAM_ERROR)
        self.body = body


_decode: Final = msgspec.json.Decoder(_Body).decode


def unsent(error: aiohttp.ClientError) -> ChatError:
    """Name what went wrong before there was an answer."""
    if isinstance(error, aiohttp.ClientConnectionError):
        is_late = isinstance(error, aiohttp.ServerTimeoutError)
        return ChatError(ErrorCode.UPSTREAM_UNREACHABLE, reason="connect_timeout" if is_late else None)
    return ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than HTTP.")


def refusal(status: int, body: bytes, retry_after: str | None) -> ChatError:
    """Name an HTTP error of the upstream; its text is read here and goes no further."""
    retry_after_s = _sane(retry_after)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return ChatError(ErrorCode.UPSTREAM_AUTH, upstream_status=status)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ChatError(ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=retry_after_s, upstream_status=status)
    if status == HTTPStatus.BAD_REQUEST and _is_context_length(body):
        return ChatError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, upstream_status=status)
    if status == HTTPStatus.NOT_FOUND:
        detail = "The upstream does not know the model, or the address is not its API's."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False, upstream_status=status)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT}:
        detail = "The upstream refused the request."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False, upstream_status=status)
    return ChatError(ErrorCode.UPSTREAM_ERROR, retry_after_s=retry_after_s, upstream_status=status)


def error_type(body: bytes) -> str | None:
    """Return what the upstream calls its error, where that is a name such as `insufficient_quota` and no text."""
    problem = _problem(body)
    names = (problem.code, problem.type)
    return next((name for name in names if isinstance(name, str) and _NAME.fullmatch(name)), None)


def _problem(body: bytes) -> _Problem:
    try:
        return _decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Problem()


def _is_context_length(body: bytes) -> bool:
    problem = _problem(body)
    # OpenAI's code, llama.cpp's type, and the words of vLLM, which has neither.
    return (
        problem.code == "context_length_exceeded"
        or problem.type == "exceed_context_size_error"
        or "maximum context length" in (problem.message or "")
    )


def _sane(retry_after: str | None) -> int | None:
    """Return the seconds that the upstream asks to wait, where they are a sane number."""
    value = retry_after or ""
    return int(value) if value.isascii() and value.isdigit() and 0 < int(value) <= _MAX_RETRY_AFTER_S else None


def named_finish(reason: str) -> FinishReason:
    """Take an upstream's reason for its end; any but three is a failure."""
    try:
        return FinishReason(reason)
    except ValueError:
        detail = "The upstream ended the answer for a reason that is not stop, length or content_filter."
        raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False) from None
