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
_SECONDS: Final = re.compile(r"[0-9]{1,6}")
# The names that are logged: a name of the upstream's own choice could be anybody's text.
_ERROR_TYPES: Final = """
account_deactivated api_error authentication_error bad_request billing_error billing_hard_limit_reached
billing_not_active capacity_exceeded content_filter content_policy_violation context_length_exceeded deadline_exceeded
engine_overloaded engine_overloaded_error exceed_context_size_error failed_precondition insufficient_balance
insufficient_quota internal internal_error internal_server_error invalid_api_key invalid_argument
invalid_authentication_error invalid_parameter invalid_prompt invalid_request invalid_request_error invalid_value
model_not_found model_overloaded not_found not_found_error organization_deactivated overloaded overloaded_error
permission_denied permission_denied_error permission_error quota_exceeded rate_limit_error rate_limit_exceeded
rate_limit_reached_error rate_limited requests request_timeout request_too_large resource_exhausted server_error
service_unavailable string_above_max_length timeout timeout_error tokens too_many_requests unauthenticated unauthorized
unavailable unavailable_error unknown_error unknown_model unsupported_parameter unsupported_value upstream_error
validation_error
"""
_KNOWN_ERROR_TYPES: Final = frozenset(_ERROR_TYPES.split())
_OTHER: Final = "other"


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
        was_sent = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        reason = "connect_timeout" if is_late else None
        return ChatError(ErrorCode.UPSTREAM_UNREACHABLE, reason=reason, was_sent=was_sent)
    return ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than HTTP.")


def refusal(status: int, body: bytes, retry_after: str | None) -> ChatError:
    """Name an HTTP error of the upstream; its text is read here and goes no further."""
    retry_after_s = _wait_s(retry_after)
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
    """Return what the upstream calls its error: a well-known name, `other` for any other, `None` without a name."""
    problem = _problem(body)
    names = [name for name in (problem.code, problem.type) if isinstance(name, str) and name]
    known = (name.lower() for name in names if name.lower() in _KNOWN_ERROR_TYPES)
    return next(known, _OTHER if names else None)


def _problem(body: bytes) -> _Problem:
    try:
        return _decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Problem()


def _is_context_length(body: bytes) -> bool:
    problem = _problem(body)
    # OpenAI's code, llama.cpp's type, and the words of vLLM, which has neither.
    return (
        problem.code == "context_length_exceeded"
        or problem.type == "exceed_context_size_error"
        or "maximum context length" in (problem.message or "")
    )


def _wait_s(retry_after: str | None) -> int | None:
    """Return the seconds that the upstream asks to wait, where they are a sane number."""
    match = _SECONDS.fullmatch(retry_after or "")
    return int(match[0]) if match and 0 < int(match[0]) <= _MAX_RETRY_AFTER_S else None


def named_finish(reason: str) -> FinishReason:
    """Take an upstream's reason for its end; any but three is a failure."""
    try:
        return FinishReason(reason)
    except ValueError:
        detail = "The upstream ended the answer for a reason that is not stop, length or content_filter."
        raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False) from None
