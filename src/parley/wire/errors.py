"""Errors over HTTP: each code's status, and the headers that repeat what an error's body says."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from parley.chat.errors import ErrorCode

if TYPE_CHECKING:
    from parley.wire.schema import ErrorResponse

STATUS: Final[Mapping[ErrorCode, HTTPStatus]] = {
    ErrorCode.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    ErrorCode.PAYLOAD_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.SHUTTING_DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.UPSTREAM_AUTH: HTTPStatus.BAD_GATEWAY,
    ErrorCode.UPSTREAM_RATE_LIMITED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.UPSTREAM_UNREACHABLE: HTTPStatus.BAD_GATEWAY,
    ErrorCode.UPSTREAM_ERROR: HTTPStatus.BAD_GATEWAY,
    ErrorCode.UPSTREAM_TRUNCATED: HTTPStatus.BAD_GATEWAY,
    ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.UPSTREAM_IDLE_TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.REQUEST_TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: HTTPStatus.BAD_REQUEST,
    ErrorCode.CONTENT_FILTERED: HTTPStatus.BAD_REQUEST,
    ErrorCode.GUARDRAIL_TRIPPED: HTTPStatus.BAD_REQUEST,
    ErrorCode.TOO_MANY_TURNS: HTTPStatus.BAD_GATEWAY,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


NO_BODY: Final = "The body is empty."


def status_of(code: ErrorCode) -> int:
    """Return a code's HTTP status; for one that this version does not know, 500."""
    return STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def headers_of(error: ErrorResponse) -> dict[str, str]:
    """Return the headers that repeat what an error's body says."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
