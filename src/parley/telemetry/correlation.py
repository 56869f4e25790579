"""Owns the thread through one request: its correlation id, and the one line that is logged at its end."""

from __future__ import annotations

import re
import time
import uuid
from http import HTTPMethod
from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar.enums import ScopeType
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

HEADER: Final = b"x-correlation-id"

_ACCEPTED: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")

_CLIENT_ERRORS: Final = range(400, 500)

_log: Final = structlog.stdlib.get_logger(__name__)


class CorrelationMiddleware:
    """Gives each request its id, in the response's headers, in every log line and in the scope's state.

    What is bound to the request's context while it is served (outcome, model, tokens) is part of its last line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        correlation_id = _correlation_id(scope)
        scope["state"]["correlation_id"] = correlation_id
        clear_contextvars()
        bind_contextvars(correlation_id=correlation_id)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, correlation_id.encode())]
            await send(message)

        outcome = "cancelled"
        try:
            await self._app(scope, receive, send_with_id)
            outcome = "completed"
        except Exception:  # noqa: BLE001  # the response has begun, so there is nothing to answer but the end of the connection
            outcome = "failed"
            _log.exception("unexpected_error")
        finally:
            _log_request(scope, status, outcome, started)


def _correlation_id(scope: Scope) -> str:
    """Keep the caller's id where it is harmless, else make one."""
    for name, value in scope["headers"]:
        if name == HEADER and _ACCEPTED.fullmatch(value):
            return value.decode()
    return new_correlation_id()


def new_correlation_id() -> str:
    """Make an id for a request that brings none."""
    return uuid.uuid4().hex


def _log_request(scope: HTTPScope, status: int | None, outcome: str, started: float) -> None:
    bound = get_contextvars()
    fields: dict[str, Any] = {
        "method": scope["method"] if scope["method"] in HTTPMethod.__members__ else "other",
        "route": scope.get(
            "path_template"
        ),  # never the path itself, which is the caller's text, as a made-up method is
        "status": status,
        "outcome": bound.get("outcome", outcome),
        "total_ms": round((time.perf_counter() - started) * 1000),
    }
    is_failure = fields["outcome"] in {"failed", "cancelled"} and status not in _CLIENT_ERRORS
    is_probe = str(fields["route"]).startswith("/health") and not is_failure
    log = _log.warning if is_failure else _log.debug if is_probe else _log.info
    log("request", **fields)
