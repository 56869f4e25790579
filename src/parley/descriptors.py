"""The process's file descriptors: how many it may open, and which client connections get one."""

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
            """Close the connection."""


_log: Final = structlog.stdlib.get_logger(__name__)

# Maximum client connections. Each takes 7 KB of memory, or 90 KB with an unfinished request; more would be a flood.
_MOST_CLIENTS: Final = 16_384

# Descriptors for everything but clients and upstreams: standard streams, log, the model's process, DNS look-ups.
_OTHERS: Final = 64

# Connections above the limit, which get only health, metrics and refusals.
_RESERVED: Final = 16

# Maximum open files that macOS allows, even if its hard limit is higher.
_MACOS_FILES: Final = 10_240

REMEDY: Final = "raise the limit of open files (LimitNOFILE, `ulimit -n`), or add replicas"


def raise_limit(upstream_connections: int) -> None:
    """Raise the limit of open files to what Parley can use, or as far as the system allows."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_CLIENTS + _RESERVED + _OTHERS + upstream_connections
    for wanted in (most, _MACOS_FILES):
        if hard != resource.RLIM_INFINITY:
            wanted = min(hard, wanted)  # noqa: PLW2901  # as far as the system allows
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(OSError, ValueError):  # macOS has a second limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def open_files() -> int | None:
    """Return how many files the process may have open; `None` means no limit, or Windows."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _tell(log: Callable[..., Any], event: str, **fields: object) -> None:
    """Log in an empty context: the current one may belong to an unrelated request."""
    Context().run(log, event, **fields)


class ConnectionLimit:
    """The limit of client connections; when it is reached, the connection that has been idle longest is closed."""

    def __init__(self, most: int, open_files: int | None) -> None:
        self._most = most
        self._open_files = open_files
        self._connections = 0
        self._idle: dict[Connection, None] = {}
        self._was_full = False

    @classmethod
    def beside(cls, upstream_connections: int) -> ConnectionLimit:
        """Return the limit that leaves enough files for upstream connections, but at least half of all to clients."""
        files = open_files()
        if files is None:
            return cls(_MOST_CLIENTS, files)
        most = max(files - _OTHERS - _RESERVED - upstream_connections, files // 2)
        return cls(min(most, _MOST_CLIENTS), files)

    def has_room(self, opening: int) -> bool:
        """Return whether one more connection can be admitted, also as a reserved one; `opening` are not counted yet."""
        return self._connections + opening < self._most + _RESERVED + len(self._idle)

    def is_reached(self, connections: int) -> bool:
        """Return whether this many connections exceed the limit."""
        return connections > self._most

    def admit(self, connections: int) -> bool:
        """Return whether a new connection, already counted, is admitted; evict an idle one if necessary."""
        self._connections = connections
        if not self.is_reached(connections):
            return True
        if not self._was_full:
            self._was_full = True
            _tell(_log.warning, "connections_full", connections=self._most, open_files=self._open_files, remedy=REMEDY)
        return self._evict_one(connection for connection in self._idle if not connection.is_reserved)

    def admit_reserved(self, connections: int) -> bool:
        """Return whether a connection is admitted for health and metrics only; evict an idle one if necessary."""
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
        if self._was_full and connections < self._most * 0.9:  # a margin, so as not to log each change
            self._was_full = False
            _tell(_log.info, "connections_free", connections=connections, open_files=self._open_files)

    def note_idle(self, connection: Connection) -> None:
        """Note that a connection has no request now."""
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """Note that a connection has a request."""
        self._idle.pop(connection, None)
