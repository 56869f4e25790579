"""Send errors over HTTP: the handlers that give every failure the same form of body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar import Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import UNSET

from parley.chat.errors import ChatError, ErrorCode
from parley.web.responses import JSONResponse
from parley.wire.errors import NO_BODY, STATUS, headers_of
from parley.wire.schema import ErrorResponse, partial_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar import Request
    from litestar.types import ExceptionHandlersMap
    from msgspec import UnsetType

    from parley.chat.record import Record

_log: Final = structlog.stdlib.get_logger(__name__)

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
