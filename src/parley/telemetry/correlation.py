"""Owns the thread through one request: its correlation id, and the one line that is logged at its end."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar.enums import ScopeType
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from parley.telemetry.request_log import request_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from litestar.types import ASGIApp, Receive, Scope, Send

    from parley.telemetry.request_log import RequestLog

HEADER: Final = b"x-correlation-id"

_PIECE_BYTES: Final = 32_768

_ACCEPTED: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")

_log: Final = structlog.stdlib.get_logger(__name__)


class CorrelationMiddleware:
    """Gives each request its id, in the response's headers, in every log line and in the scope's state.

    What is bound to the request's context while it is served (outcome, model, tokens) is part of its last line.
    """

    def __init__(self, app: ASGIApp, done: Callable[[RequestLog], None]) -> None:
        """Wrap the app; `done` is told of each request at its end."""
        self._app = app
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        now = asyncio.get_running_loop().time
        started = now()
        correlation_id = correlation_id_of(scope)
        clear_contextvars()
        bind_contextvars(correlation_id=correlation_id)
        if "trace_id" in scope["state"]:
            bind_contextvars(trace_id=scope["state"]["trace_id"])
        status: int | None = None
        bytes_in = bytes_out = 0

        async def receive_counted() -> Any:
            nonlocal bytes_in
            message: Any = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def send_with_id(message: Any) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, correlation_id.encode())]
            else:
                body = message.get("body", b"")
                bytes_out += len(body)
                if len(body) > _PIECE_BYTES:
                    message["body"] = await _send_all_but_the_end(send, body)
            await send(message)

        outcome = "cancelled"
        try:
            await self._app(scope, receive_counted, send_with_id)
            outcome = "completed"
        except asyncio.CancelledError:
            # uvicorn cancels requests when its time to stop is over; it would log an error, and answer in plain text.
            if "end_early" not in scope["state"]:
                raise
            scope["state"]["end_early"](scope["state"])
        except Exception:  # noqa: BLE001  # the response has begun, so there is nothing to answer but the end of the connection
            outcome = "failed"
            _log.exception("unexpected_error")
        finally:
            bind_contextvars(**scope["state"].get("answered", {}))  # by the connection, in the app's place
            measured = {"outcome": outcome, "status": status, "bytes_in": bytes_in, "bytes_out": bytes_out}
            total_ms = round((now() - started) * 1000)
            self._done(request_log(scope, get_contextvars(), **measured, total_ms=total_ms))


async def _send_all_but_the_end(send: Send, body: bytes) -> bytes:
    """Send a large body in pieces, each when the client has taken the one before it; return the last one.

    A client that does not read would otherwise keep a copy of the whole body in memory.
    """
    end = (len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
    for start in range(0, end, _PIECE_BYTES):
        piece = body[start : start + _PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    return body[end:]


def correlation_id_of(scope: Any) -> str:
    """Return the id of a request, whose scope's state keeps it from then on."""
    state: dict[str, str] = scope["state"]
    if "correlation_id" not in state:
        state["correlation_id"] = kept_correlation_id(scope["headers"]) or new_correlation_id()
    return state["correlation_id"]


def kept_correlation_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the caller's own id where it is harmless; the headers' names are in lower case."""
    for name, value in headers:
        if name == HEADER and _ACCEPTED.fullmatch(value):
            return value.decode()
    return None


def new_correlation_id() -> str:
    """Make an id for a request that brings none."""
    return uuid.uuid4().hex
