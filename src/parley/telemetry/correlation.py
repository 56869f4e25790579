"""Follow one request through the layers that serve it: its correlation id, and the record that they fill in."""

from __future__ import annotations

import asyncio
from http import HTTPMethod
from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar.enums import ScopeType
from structlog.contextvars import bind_contextvars, clear_contextvars

from parley.chat.record import Record
from parley.wire.correlation import HEADER, kept_correlation_id, new_correlation_id
from parley.wire.headers import NO_STORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from litestar.types import ASGIApp, Receive, Scope, Send

_NO_STORE: Final = (b"cache-control", NO_STORE.encode())
_PIECE_BYTES: Final = 32_768

_log: Final = structlog.stdlib.get_logger(__name__)


class CorrelationMiddleware:
    """Gives each request its id, in the response's headers and every log line, and its record, in the scope's state.

    A response without a `Cache-Control` header also gets `Cache-Control: no-store`.
    """

    def __init__(self, app: ASGIApp, done: Callable[[Record, float], None]) -> None:
        """Wrap the app; call `done` at the end of each request, with its record and the seconds that it took."""
        self._app = app
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; pass all other scopes on unchanged."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        now = asyncio.get_running_loop().time
        started = now()
        record = record_of(scope)
        _bind(record)

        async def receive_counted() -> Any:
            message: Any = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def send_with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = _headers(message["headers"], record.correlation_id)
            else:
                body = message.get("body", b"")
                record.bytes_out += len(body)
                if len(body) > _PIECE_BYTES:
                    message["body"] = await _send_all_but_the_end(send, body)
            await send(message)

        try:
            await self._app(scope, receive_counted, send_with_id)
            record.end("completed")
        except asyncio.CancelledError:
            # uvicorn cancels requests when its shutdown timeout expires; it would log an error, and answer in plain
            # text.
            if "end_early" not in scope["state"]:
                raise
            scope["state"]["end_early"](scope["state"])
        except Exception:  # noqa: BLE001  # the response has begun, so the only possible answer is to close the connection
            record.end("failed")
            _log.exception("unexpected_error")
        finally:
            if (answered := scope["state"].get("answered")) is not None:
                answered(
                    record
                )  # last, as the app has continued, and may have recorded a response that the client never got
            record.route = scope.get("path_template")
            took_s = now() - started
            record.total_ms = round(took_s * 1000)
            self._done(record, took_s)


def _headers(headers: Iterable[tuple[bytes, bytes]], correlation_id: str) -> list[tuple[bytes, bytes]]:
    all_of_them = [*headers, (HEADER, correlation_id.encode())]
    return all_of_them if any(name == _NO_STORE[0] for name, _ in all_of_them) else [*all_of_them, _NO_STORE]


def _bind(record: Record) -> None:
    """Add the request's ids to all lines that are logged in its context."""
    clear_contextvars()
    bind_contextvars(correlation_id=record.correlation_id)
    if record.trace_id is not None:
        bind_contextvars(trace_id=record.trace_id)


async def _send_all_but_the_end(send: Send, body: bytes) -> bytes:
    """Send a large body in pieces, each after the client has taken the previous one; return the last piece.

    Otherwise, a client that does not read would keep a copy of the whole body in memory.
    """
    end = (len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
    for start in range(0, end, _PIECE_BYTES):
        piece = body[start : start + _PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    return body[end:]


def record_of(scope: Any) -> Record:
    """Return the record of a request; the first call creates it in the scope's state."""
    state: dict[str, Any] = scope["state"]
    if "record" not in state:
        state["record"] = Record(
            correlation_id=kept_correlation_id(scope["headers"]) or new_correlation_id(),
            # Never an unknown method, which is text of the caller's choice, like the path.
            method=scope["method"] if scope["method"] in HTTPMethod.__members__ else "other",
        )
    record: Record = state["record"]
    return record
