"""The connections to an upstream. One that may hold bytes of another request's response is never reused."""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import urllib.parse
import urllib.request
from contextlib import suppress
from contextvars import Context
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import aiohttp
import httpx
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

if TYPE_CHECKING:
    import ssl

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_log: Final = structlog.stdlib.get_logger(__name__)

# Per request: the response's own head, and those of the interim responses (1xx) before it.
_MAX_HEADS: Final = 16
# A complete response, which a parser recognises as one only if it holds no part of another response.
_PROBE: Final = b"HTTP/1.1 299 Probe\r\nContent-Length: 0\r\n\r\n"
_PROBE_STATUS: Final = 299
# After a larger read, yield to the event loop: uvloop would fill its 256,000-byte buffer up to 32 times in a row.
_LARGE_READ_BYTES: Final = 65_536


class UnsentError(aiohttp.ServerDisconnectedError):
    """The request was not sent, because its reused connection could not be trusted."""


class Connector(aiohttp.TCPConnector):
    """A pool of connections that reuses a connection only if it received nothing but the response to its request.

    aiohttp's own pool reuses any open connection, even one that received a second response while it was idle.
    """

    def __init__(self, trusted: ssl.SSLContext | Literal[True]) -> None:
        # No limit here: the chat service limits the number of streams.
        super().__init__(limit=0, ssl=trusted, resolver=_Resolver())
        # aiohttp has no public way to set the class of the connections.
        kind = _Connection if isinstance(self._loop, asyncio.SelectorEventLoop) else _PatientConnection
        self._factory = cast("partial[ResponseHandler]", partial(kind, loop=self._loop))

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if isinstance(connection.protocol, _Connection) and connection.protocol.resume():
                return connection
            connection.close()
        return None

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        if isinstance(protocol, _Connection):
            protocol.rest()


class _Connection(ResponseHandler):
    """One connection to an upstream."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.is_reused = False
        self._is_idle = False
        self._heads = 0

    def rest(self) -> None:
        """Mark the connection as idle."""
        self._is_idle = True

    def resume(self) -> bool:
        """Mark the connection as in use; return whether it can be reused."""
        self._is_idle = False
        self.is_reused = True
        self._heads = 0
        return not self.should_close and not self.writing_paused and self._has_parsed_all() and self.is_silent()

    def is_silent(self) -> bool:
        """Return whether the upstream has neither sent anything nor closed the connection before the request."""
        if self.transport is None or self._buffer or self.exception() is not None:
            return False
        # Do not check a new connection: a TLS handshake leaves bytes to read.
        return not self.is_reused or not _has_input(self.transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that were read; close the connection if they arrive while it is idle."""
        if not (data and self._is_idle):  # aiohttp passes no data, to resume parsing what it has
            super().data_received(data)
            return
        # In a new context: the current one belongs to the request for which the connection was opened.
        Context().run(_log.warning, "upstream_unexpected_bytes", bytes=len(data))
        self.abort()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002  # aiohttp's signature
        """Resume reading, but only if it was paused: aiohttp's method calls the parser for each piece that is read."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Accept a response's head; fail after too many, as interim responses could go on forever."""
        self._heads += 1
        if self._heads > _MAX_HEADS:
            if self.transport is not None:
                self.transport.abort()
            self.set_exception(HttpProcessingError(message="too many interim responses"))
            return
        super().feed_data(data, size)

    def _has_parsed_all(self) -> bool:
        """Return whether the last read ended with the response, by a probe: the parser does not say what it holds."""
        if self._parser is None:
            return False
        try:
            messages, *_ = self._parser.feed_data(_PROBE)
        except Exception:  # noqa: BLE001  # any error means that the parser held part of another response
            return False
        return [message.code for message, _ in messages] == [_PROBE_STATUS]


def _has_input(connection: socket.socket) -> bool:
    """Return whether there is something to read; the end of the connection counts, too."""
    if sys.platform == "win32":
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()  # on other systems, `select` takes no file descriptor above 1,023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


class _PatientConnection(_Connection):
    """A connection for event loops such as uvloop, which read a lot at a time, often several times in a row."""

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that were read; after a large read, continue in the event loop's next turn."""
        super().data_received(data)
        if len(data) > _LARGE_READ_BYTES and self.transport is not None:
            self.transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.transport is not None and not self._reading_paused:
            self.transport.resume_reading()


class Request(aiohttp.ClientRequest):
    """A request that is sent only on a silent connection: bytes that arrive before it are not its response."""

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
    ) -> None:
        """Send the request; before this call, aiohttp has only assembled its head."""
        protocol = conn.protocol
        if isinstance(protocol, _Connection) and not protocol.is_silent():
            protocol._buffer.clear()  # noqa: SLF001  # aiohttp would return these bytes before it raises the error
            protocol.set_exception(UnsentError() if protocol.is_reused else aiohttp.ServerDisconnectedError())
            return
        await super().write_bytes(writer, conn, content_length)


class _Resolver(AbstractResolver):
    """Looks up names in daemon threads: asyncio's threads would delay the exit until a hanging lookup ends."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return a host's addresses, or raise `OSError` if it has none."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def tell(addresses: list[ResolveResult], error: OSError | None) -> None:
            if found.done():  # the request has ended
                return
            if error is None:
                found.set_result(addresses)
            else:
                found.set_exception(error)

        def look_up() -> None:
            addresses: list[ResolveResult] = []
            failure: OSError | None = None
            try:
                addresses = _addresses(host, port, family)
            except (OSError, UnicodeError) as error:
                failure = error if isinstance(error, OSError) else OSError(str(error))
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, addresses, failure)

        try:
            Thread(target=look_up, daemon=True, name="resolver").start()
        except RuntimeError as error:
            raise OSError("no thread can be started") from error
        return await found

    async def close(self) -> None:
        """Do nothing: a lookup cannot be stopped."""


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    """Return a host's addresses; an IPv6 address keeps its zone, without which a link-local one is unreachable."""
    infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
            port=port,
            family=found,
            proto=proto,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for found, _, proto, _, address in infos
    ]


def trusted(base_url: str) -> ssl.SSLContext | Literal[True]:
    """Return the certificates that httpx, and so the openai library, trusts; without TLS, do not load them."""
    return httpx.create_ssl_context() if base_url.startswith("https:") else True


def proxy(base_url: str) -> str | None:
    """Return the proxy that the environment sets for this URL, if any."""
    address = urllib.parse.urlsplit(base_url)
    if urllib.request.proxy_bypass(address.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(address.scheme) or proxies.get("all")
