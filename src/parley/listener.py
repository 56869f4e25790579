"""Owns the event loop of the server, and how it accepts clients' connections."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from parley.descriptors import REMEDY, open_files

try:
    from uvloop import Loop as FastestLoop
except ImportError:  # there is none for Windows and PyPy
    from asyncio import SelectorEventLoop as FastestLoop  # type: ignore[assignment]

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from parley.descriptors import ConnectionLimit

_log: Final = structlog.stdlib.get_logger(__name__)

# Connections that may wait to be accepted, and those that are accepted before the loop serves others.
LISTEN_QUEUE: Final = 2048
_ACCEPTS: Final = 16

# Errors of `accept` that concern the process or the system, not one connection. After one, Parley tries again after
# `_RETRY_S`; after `_CALM_S` without another, it says that it can accept again.
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_S: Final = 1.0
_CALM_S: Final = 3.0

# Seconds until Parley looks again for room, when every connection has a request, even the reserved ones.
_FULL_RETRY_S: Final = 0.01


class Listener:
    """Accepts clients' connections, a few at a time; those that it cannot accept yet wait in the queue.

    The loops' own servers do worse without a file descriptor: asyncio's logs thousands of lines a second, and uvloop's
    accepts the whole queue at once and closes the connections. It also stops listening at any other error.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        listening: socket.socket,
        limit: ConnectionLimit,
    ) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._socket = listening
        self._limit = limit
        self._opening: set[asyncio.Task[Any]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None
        listening.setblocking(False)  # noqa: FBT003  # its only parameter
        self._listen()

    def _listen(self) -> None:
        self._retry = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if not self._limit.has_room(len(self._opening)):
                self._wait(_FULL_RETRY_S)
                return
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._wait(_RETRY_S)
                    self._tell()
                if error.errno != errno.ECONNABORTED:  # all are accepted, or another worker has been faster
                    return
            else:
                opening = self._loop.create_task(self._open(connection))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        with suppress(OSError):  # the client has gone
            await self._loop.connect_accepted_socket(self._protocol_factory, connection)

    def _wait(self, time_s: float) -> None:
        self._loop.remove_reader(self._socket)
        self._retry = self._loop.call_later(time_s, self._listen)

    def _tell(self) -> None:
        if self._calm is None:
            _log.warning("cannot_accept", open_files=open_files(), remedy=REMEDY)
        else:
            self._calm.cancel()
        self._calm = self._loop.call_later(_CALM_S, self._tell_calm)

    def _tell_calm(self) -> None:
        self._calm = None
        _log.info("can_accept", open_files=open_files())

    def close(self) -> None:
        """Stop listening."""
        for timer in (self._retry, self._calm):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def wait_closed(self) -> None:
        """Do nothing: uvicorn itself waits for the connections."""


class Loop(FastestLoop):
    """The fastest event loop that there is for the platform, with Parley's way to accept connections."""

    def __init__(self, limit: ConnectionLimit) -> None:
        super().__init__()
        self._limit = limit

    async def create_server(  # type: ignore[override]  # as uvicorn calls it
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], *, sock: socket.socket, **_: Any
    ) -> Listener:
        """Listen; uvicorn asks for no TLS, and its number for the queue is not Parley's."""
        return Listener(self, protocol_factory, sock, self._limit)
