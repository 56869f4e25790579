"""The error responses that a connection sends itself, in place of the app."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

from parley.wire.correlation import HEADER
from parley.wire.encoding import encode_json
from parley.wire.errors import STATUS, headers_of
from parley.wire.headers import NO_STORE
from parley.wire.schema import ErrorResponse

if TYPE_CHECKING:
    from parley.chat.errors import ChatError
    from parley.chat.record import Record


class Refusal:
    """An error response in the same form as the app's, and its note in the request's record."""

    def __init__(self, error: ChatError, status: int | None, correlation_id: str, *, has_body: bool) -> None:
        """Prepare the response; `status` replaces the usual one of the error's code. A response to HEAD has no body."""
        self._error = error
        self._status = int(status or STATUS[error.code])
        problem = ErrorResponse.of(error, correlation_id)
        body = encode_json(problem)
        headers = [
            *headers_of(problem).items(),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            (HEADER.decode(), correlation_id),
            ("cache-control", NO_STORE),
            ("connection", "close"),
        ]
        response = h11.Response(
            status_code=self._status, headers=headers, reason=HTTPStatus(self._status).phrase.encode()
        )
        data = (h11.Data(data=body),) if has_body else ()
        self._bytes_out = len(body) if has_body else 0
        self.events: tuple[h11.Event, ...] = (response, *data, h11.EndOfMessage())

    def note(self, record: Record) -> None:
        """Note in the record what the client received."""
        record.fail(self._error)
        record.status = self._status
        record.bytes_out = self._bytes_out
