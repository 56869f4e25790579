"""Owns the errors that a connection answers by itself, in place of the app."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import msgspec

from parley.telemetry.correlation import HEADER
from parley.web.errors import STATUS, headers_of
from parley.web.schema import ErrorResponse

if TYPE_CHECKING:
    from parley.chat.errors import ChatError


class Refusal:
    """The response, as any other error has it, and what the request's log line says of it."""

    def __init__(self, error: ChatError, status: int | None, correlation_id: str, *, has_body: bool) -> None:
        """Take the error; `status` replaces the usual one of its code. A response to HEAD has no body."""
        status = status or STATUS[error.code]
        problem = ErrorResponse.of(error, correlation_id)
        body = msgspec.json.encode(problem)
        headers = [
            *headers_of(problem).items(),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            (HEADER.decode(), correlation_id),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
        data = (h11.Data(data=body),) if has_body else ()
        self.events: tuple[h11.Event, ...] = (response, *data, h11.EndOfMessage())
        self.logged: dict[str, Any] = {
            "outcome": "failed",
            "status": int(status),
            "error_code": error.code,
            "reason": error.reason,
            "bytes_out": len(body) if has_body else 0,
        }
