"""The server's event loop, and how it accepts client connections."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from parley.descriptors import REMEDY, open_files

try:
    from uvloop import Loop as FastestLoop
except ImportError:  # uvloop does not support Windows and PyPy
    from asyncio import SelectorEventLoop as FastestLoop  # type: ignore[assignment]

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from parley.descriptors import ConnectionLimit

_log: Final = structlog.stdlib.get_logger(__name__)

# Maximum connections in the accept queue, and maximum accepted before the loop serves others.
LISTEN_QUEUE: Final = 2048
_ACCEPTS: Final = 16

# Errors of `accept` that concern the process or the system, not one connection. After one, Parley tries again after
# `_RETRY_S`; after `_CALM_S` without another, it logs that it can accept again.
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_S: Final = 1.0
_CALM_S: Final = 3.0

# Seconds until Parley checks again for room, if every connection has a request, even the reserved ones.
_FULL_RETRY_S: Final = 0.01


class Listener:
    """Accepts client connections, a few at a time; connections that it cannot accept yet wait in the queue.

    The loops' own servers fail when file descriptors run out: asyncio's logs thousands of lines per second; uvloop's
    accepts the whole queue at once and closes the connections. uvloop's also stops listening after any other error.
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
        listening.setblocking(False)  # noqa: FBT003  # its only parameter, which has no keyword
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
                if error.errno != errno.ECONNABORTED:  # the queue is empty, or another worker was faster
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
        """Do nothing: uvicorn waits for the connections itself."""


class Loop(FastestLoop):
    """The fastest event loop for the platform, which accepts connections with `Listener`."""

    def __init__(self, limit: ConnectionLimit) -> None:
        super().__init__()
        self._limit = limit

    async def create_server(  # type: ignore[override]  # as uvicorn calls it
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], *, sock: socket.socket, **_: Any
    ) -> Listener:
        """Listen on `sock`; ignore the other options: uvicorn requests no TLS, and its queue size is not Parley's."""
        return Listener(self, protocol_factory, sock, self._limit)
