"""Owns the process's file descriptors: how many there are, and which clients' connections get one."""

from __future__ import annotations

import sys
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

import structlog

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    class Connection(Protocol):
        """A client's connection."""

        is_reserved: bool

        def evict(self) -> None:
            """Close it."""


_log: Final = structlog.stdlib.get_logger(__name__)

# More clients would be a flood, and each takes 7 KB, or 90 with a request that does not come to its end.
_MOST_CLIENTS: Final = 16_384

# For what is neither a client nor an upstream: standard streams, the log, the model's process, name look-ups.
_OTHERS: Final = 64

# Connections above the limit, for health, metrics and refusals.
_RESERVED: Final = 16

# The most that macOS allows, whatever its hard limit says.
_MACOS_FILES: Final = 10_240

REMEDY: Final = "raise the limit of open files (LimitNOFILE, `ulimit -n`), or add replicas"


def raise_limit(upstream_connections: int) -> None:
    """Raise the limit of open files as far as the system allows, and as there is a use for it."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_CLIENTS + _RESERVED + _OTHERS + upstream_connections
    for wanted in (most, _MACOS_FILES):
        if hard != resource.RLIM_INFINITY:
            wanted = min(hard, wanted)  # noqa: PLW2901  # as far as the system allows
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(OSError, ValueError):  # macOS has another limit, too
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def open_files() -> int | None:
    """Return how many files the process may have open; `None` says that there is no limit."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _tell(log: Callable[..., Any], event: str, **fields: object) -> None:
    """Log in a context of its own: it may be that of a request that has nothing to do with it."""
    Context().run(log, event, **fields)


class ConnectionLimit:
    """The limit of clients' connections: if it is reached, the one that has been idle for longest is closed."""

    def __init__(self, most: int, open_files: int | None) -> None:
        self._most = most
        self._open_files = open_files
        self._connections = 0
        self._idle: dict[Connection, None] = {}
        self._was_full = False

    @classmethod
    def beside(cls, upstream_connections: int) -> ConnectionLimit:
        """Return the limit that leaves enough files for so many connections to upstreams."""
        files = open_files()
        if files is None:
            return cls(_MOST_CLIENTS, files)
        most = max(files - _OTHERS - _RESERVED - upstream_connections, files // 2)
        return cls(min(most, _MOST_CLIENTS), files)

    def has_room(self, opening: int) -> bool:
        """Return whether one more connection can be admitted, at least as a reserved one, beside those that open."""
        return self._connections + opening < self._most + _RESERVED + len(self._idle)

    def is_reached(self, connections: int) -> bool:
        """Return whether there are more connections than the limit allows."""
        return connections > self._most

    def admit(self, connections: int) -> bool:
        """Admit one more connection, which is counted already, if need be in the place of an idle one."""
        self._connections = connections
        if not self.is_reached(connections):
            return True
        if not self._was_full:
            self._was_full = True
            _tell(_log.warning, "connections_full", connections=self._most, open_files=self._open_files, remedy=REMEDY)
        return self._evict_one(connection for connection in self._idle if not connection.is_reserved)

    def admit_reserved(self, connections: int) -> bool:
        """Admit a connection that gets health and metrics only."""
        return connections <= self._most + _RESERVED or self._evict_one(iter(self._idle))

    def _evict_one(self, idle: Iterator[Connection]) -> bool:
        longest = next(idle, None)
        if longest is None:
            return False
        self.note_busy(longest)
        longest.evict()
        return True

    def leave(self, connection: Connection, connections: int) -> None:
        """Note that a connection is closed."""
        self._connections = connections
        self.note_busy(connection)
        if self._was_full and connections < self._most * 0.9:  # not at each that comes and goes
            self._was_full = False
            _tell(_log.info, "connections_free", connections=connections, open_files=self._open_files)

    def note_idle(self, connection: Connection) -> None:
        """Note that a connection has no request from now on."""
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """Note that a connection has a request."""
        self._idle.pop(connection, None)
