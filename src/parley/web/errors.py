"""Send errors over HTTP: each code's status, and the handlers that give every failure the same form of body."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar import Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import UNSET

from parley.chat.errors import ChatError, ErrorCode
from parley.web.encoding import JSONResponse
from parley.web.schema import ErrorResponse, partial_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar import Request
    from litestar.types import ExceptionHandlersMap
    from msgspec import UnsetType

    from parley.chat.record import Record

_log: Final = structlog.stdlib.get_logger(__name__)

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

# nginx's status for a client that disconnects; it is seen only in the log, as no client reads the response.
_CLIENT_CLOSED_REQUEST: Final = 499

# The errors that Litestar itself raises, before it calls a controller.
_CODES: Final[Mapping[int, ErrorCode]] = {
    STATUS[code]: code
    for code in (
        ErrorCode.INVALID_REQUEST,
        ErrorCode.NOT_FOUND,
        ErrorCode.METHOD_NOT_ALLOWED,
        ErrorCode.PAYLOAD_TOO_LARGE,
        ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    )
}

NO_BODY: Final = "The body is empty."


class ClientDisconnectedError(Exception):
    """The client disconnected before Parley had anything to send."""


class IncompleteAnswerError(Exception):
    """A whole answer failed; `text` is what had arrived, and is not part of the message, so that no log has it."""

    def __init__(self, cause: ChatError, text: str) -> None:
        super().__init__(cause.code)
        self.cause = cause
        self.text = text


def _respond(
    request: Request[Any, Any, Any],
    error: ChatError,
    headers: Mapping[str, str] | None = None,
    partial: str | UnsetType = UNSET,
) -> Response[ErrorResponse]:
    record: Record = request.state.record
    record.fail(error)
    body = ErrorResponse.of(error, record.correlation_id, partial)
    return JSONResponse(
        body,
        status_code=STATUS[error.code],
        media_type="application/json",
        headers={**(headers or {}), **headers_of(body)},
    )


def headers_of(error: ErrorResponse) -> dict[str, str]:
    """Return the headers that repeat what an error's body says."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code is ErrorCode.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorResponse]:
    code = _CODES.get(error.status_code)
    if code is None:
        return _on_unexpected(request, error)
    return _respond(request, ChatError(code), error.headers)


def _on_no_body(request: Request[Any, Any, Any], _: ValidationException) -> Response[ErrorResponse]:
    # Decoding finds everything that can be wrong with a body; Litestar itself only finds that there is none.
    return _respond(request, ChatError(ErrorCode.INVALID_REQUEST, detail=NO_BODY))


def _on_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorResponse]:
    _log.error("unexpected_error", exc_info=error)
    return _respond(request, ChatError(ErrorCode.INTERNAL))


def _on_incomplete(request: Request[Any, Any, Any], error: IncompleteAnswerError) -> Response[ErrorResponse]:
    return _respond(request, error.cause, partial=partial_text(error.cause.code, error.text))


def _on_disconnect(request: Request[Any, Any, Any], _: ClientDisconnectedError) -> Response[bytes]:
    record: Record = request.state.record
    record.outcome = "client_disconnected"
    return Response(b"", status_code=_CLIENT_CLOSED_REQUEST)


EXCEPTION_HANDLERS: Final[ExceptionHandlersMap] = {
    ChatError: _respond,
    ClientDisconnectedError: _on_disconnect,
    IncompleteAnswerError: _on_incomplete,
    ValidationException: _on_no_body,
    HTTPException: _on_http_error,
    Exception: _on_unexpected,
}
