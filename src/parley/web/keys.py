"""Decide which requests may pass, by connection limit and API key, and name the caller whose quotas they count for."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import TYPE_CHECKING, Any, Final

from parley.chat.errors import ChatError, ErrorCode
from parley.wire.keys import UNKNOWN_KEY, sent_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

    from parley.chat.record import Record

_NAME_DIGITS: Final = 8

FULL: Final = "is_full"
"""The name, in a scope's state, for whether its connection is reserved for health checks and metrics."""


def check_room(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """Raise `ChatError` if a request is on a connection that is reserved for health checks and metrics."""
    if connection.scope["state"].get(FULL):
        raise ChatError(
            ErrorCode.OVERLOADED,
            detail="Parley has reached its limit of client connections.",
            reason="connections_full",
            retry_after_s=1,
        )


class KeyGuard:
    """A guard for routes: if there are any keys, each request needs one of them. It keeps only the keys' hashes.

    Async, so that Litestar does not run it in a thread for each request.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Name the caller in the connection's state, by key or address; raise `ChatError` for a missing or bad key."""
        state = connection.scope["state"]
        if not self._hashes:
            state["caller"] = _caller(connection.client.host) if connection.client else ""
            return
        key = sent_key(connection.headers.get("Authorization", ""))
        if key is None:
            raise ChatError(ErrorCode.UNAUTHORIZED, reason="no_key")
        sent = _hash(key)
        # Compare with every key, so that the time taken does not reveal which one nearly matched.
        if not sum([hmac.compare_digest(sent, known) for known in self._hashes]):
            raise ChatError(ErrorCode.UNAUTHORIZED, reason="wrong_key", detail=UNKNOWN_KEY)
        record: Record = state["record"]
        record.caller = state["caller"] = sent.hex()[:_NAME_DIGITS]


def _caller(host: str) -> str:
    """Name a caller by its address; for IPv6, by its /64 network, as each caller has a whole one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address), 64), strict=False))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
