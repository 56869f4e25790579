"""Owns the refusal of requests for which there is no connection left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

FULL: Final = "is_full"
"""In a scope's state: whether its connection is one of those that are kept for health and metrics."""

_DETAIL: Final = "Parley has reached its limit of client connections."


async def check_room(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Guard other routes: raise `ChatError` on a connection that is kept for health and metrics."""
    if connection.scope["state"].get(FULL):
        raise ChatError(ErrorCode.OVERLOADED, detail=_DETAIL, reason="connections_full", retry_after_s=1)
