"""Owns the process's file descriptors: how many there are, and which clients' connections get one."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parley.connection import Connection

_log: Final = structlog.stdlib.get_logger(__name__)

# More clients would be a flood, and each takes 7 KB, or 90 with a request that does not come to its end.
_MOST_CLIENTS: Final = 16_384

# For what is neither a client nor an upstream: standard streams, the log, the model's process, name look-ups.
_OTHERS: Final = 64

# Connections above the most, for probes and for refusals.
_EXTRA: Final = 16

_REMEDY: Final = "raise the limit of open files (LimitNOFILE, `ulimit -n`), or add replicas"

# Connections that may wait to be accepted, and those that are accepted before the loop serves others. CPython 3.11
# tries as often even if each try fails, and logs each time.
LISTEN_QUEUE: Final = 2048
_ACCEPTS: Final = 16

# Without a failure for so long, connections are accepted again; asyncio tries once a second.
_CALM_S: Final = 3.0


def raise_limit(upstream_connections: int) -> None:
    """Raise the limit of open files as far as the system allows, and as there is a use for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CLIENTS + _EXTRA + _OTHERS + upstream_connections
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems have another limit, and do not tell it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Room:
    """The room for clients' connections: if it is full, the one that has been idle for longest gives way."""

    def __init__(self, most: int, open_files: int) -> None:
        self._most = most
        self._open_files = open_files
        self._idle: dict[Connection, None] = {}
        self._was_full = False

    @classmethod
    def beside(cls, upstream_connections: int) -> Room:
        """Return the room that is left beside so many connections to upstreams."""
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if open_files == resource.RLIM_INFINITY:
            return cls(_MOST_CLIENTS, open_files)
        most = max(open_files - _OTHERS - _EXTRA - upstream_connections, open_files // 2)
        return cls(min(most, _MOST_CLIENTS), open_files)

    def is_full(self, connections: int) -> bool:
        """Tell whether there are more connections than may be."""
        return connections > self._most

    def enter(self, connections: int) -> bool:
        """Make room for one more, which is counted already; return whether there is any."""
        if not self.is_full(connections):
            return True
        if not self._was_full:
            self._was_full = True
            _log.warning("connections_full", connections=self._most, open_files=self._open_files, remedy=_REMEDY)
        return self._make_one_give_way(connection for connection in self._idle if not connection.is_extra)

    def enter_extra(self, connections: int) -> bool:
        """Make room for one that may only probe; return whether there is any."""
        return connections <= self._most + _EXTRA or self._make_one_give_way(iter(self._idle))

    def _make_one_give_way(self, idle: Iterator[Connection]) -> bool:
        longest = next(idle, None)
        if longest is None:
            return False
        self.note_busy(longest)
        longest.give_way()
        return True

    def leave(self, connection: Connection, connections: int) -> None:
        """Note that a connection is closed."""
        self.note_busy(connection)
        if self._was_full and connections < self._most * 0.9:  # not at each that comes and goes
            self._was_full = False
            _log.info("connections_free", connections=connections, open_files=self._open_files)

    def note_idle(self, connection: Connection) -> None:
        """Note that a connection has no request from now on."""
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """Note that it has one."""
        self._idle.pop(connection, None)


class Loop(asyncio.SelectorEventLoop):
    """asyncio's event loop, which accepts a few connections at a time, and says once that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self._last_failure = 0.0
        self._calm: asyncio.TimerHandle | None = None

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """Listen; asyncio's one number for the queue and for the connections accepted at a time becomes two."""
        server = await super().create_server(*args, **{**options, "backlog": _ACCEPTS})
        options["sock"].listen(LISTEN_QUEUE)
        return server

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Handle what nobody did."""
        if context.get("message") != "socket.accept() out of system resource":
            super().call_exception_handler(context)
            return
        self._last_failure = self.time()
        if self._calm is None:
            _log.warning("cannot_accept", open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0], remedy=_REMEDY)
            self._calm = self.call_later(_CALM_S, self._look)

    def _look(self) -> None:
        if self.time() - self._last_failure < _CALM_S:
            self._calm = self.call_later(_CALM_S, self._look)
        else:
            self._calm = None
            _log.info("can_accept", open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
