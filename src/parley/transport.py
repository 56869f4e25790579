"""A client's transport: its buffers, uvicorn's view of it, and a close that does not lose the response."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import FlowControl

from parley.request_parser import ReadBudget

if sys.platform == "linux":
    import fcntl
    import termios

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.protocols.http.h11_impl import H11Protocol

# The socket's send buffer. It is small, so that a client that does not read uses little memory.
_SEND_BUFFER_BYTES: Final = 65_536

# Maximum bytes that are parsed before the loop serves others; the loops' own 256 KB can hold 40,000 chunks.
_READ_BYTES: Final = 16_384

# How long, and how much, a client may go on sending after it was refused.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 << 20
_LINGER_BYTES_PER_READ: Final = 4_096

# The buffer for every read. All connections share it, because each copies its bytes before the next read.
_READ_BUFFER: Final = memoryview(bytearray(_READ_BYTES))


def prepare(transport: asyncio.Transport) -> None:
    """Set the buffers and socket options of a client's connection."""
    transport.set_write_buffer_limits(0)  # so that the write deadline runs for any byte that is not sent
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    # asyncio sets this only if it created the listening socket. Without it, a chunk can wait up to 40 ms for the
    # client's acknowledgement of the previous chunk.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def unread_bytes(transport: asyncio.Transport) -> int:
    """Return the number of bytes that the client has not received yet.

    On Linux this includes the kernel's send buffer; elsewhere only the transport's own buffer is known.
    """
    unread = transport.get_write_buffer_size()
    if sys.platform == "linux":
        with suppress(OSError):  # the connection is lost
            answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            unread += int.from_bytes(answer, sys.byteorder)
    return unread


def reset(transport: asyncio.Transport) -> None:
    """Close the connection with an RST."""
    connection: socket.socket = transport.get_extra_info("socket")
    with suppress(OSError):  # the connection is lost
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Lingering:
    """The end of a connection whose client may still be sending: its bytes are discarded until the client closes.

    If a connection is closed with unread bytes, it is reset, and the client may lose its response (RFC 9112, 9.6).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._discarded = ReadBudget(_LINGER_BYTES, _LINGER_BYTES_PER_READ)
        with suppress(OSError):  # the client has gone
            transport.write_eof()
        self._timer = loop.call_later(_LINGER_S, self._close)

    def discard(self, data: bytes) -> None:
        """Discard bytes from the client; close the connection if there are too many."""
        self._discarded.spend(len(data))
        if self._discarded.is_spent:
            self._transport.close()

    def stop(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()

    def _close(self) -> None:
        if self._transport.get_write_buffer_size():  # the client is still reading; the write deadline limits that
            self._timer = self._loop.call_later(_LINGER_S, self._close)
        else:
            self._transport.close()


class Reader(asyncio.BufferedProtocol):
    """Reads from a client in small pieces, between which the loop serves others; passes all else to the connection.

    The loops' own buffers hold 256 KB. uvloop fills a buffer up to 32 times in a row, so `Reader` pauses reading after
    a read that fills the buffer.
    """

    def __init__(self, connection: H11Protocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._transport = transport
        self._loop = loop

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the loop's suggestion
        """Return the buffer for the next read."""
        return _READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Pass the bytes that were read to the connection."""
        if nbytes == _READ_BYTES:
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)
        self._connection.data_received(bytes(_READ_BUFFER[:nbytes]))

    def _go_on(self) -> None:
        if not self._connection.flow.read_paused:
            self._transport.resume_reading()

    def eof_received(self) -> None:
        """Notify the connection."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """Notify the connection."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Notify the connection."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the connection."""
        self._connection.connection_lost(exc)


class ClientTransport:
    """uvicorn's view of a transport: the connection decides how to close it; other calls go straight through."""

    def __init__(self, transport: asyncio.Transport, is_closing: Callable[[], bool], close: Callable[[], None]) -> None:
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write = transport.write
        self.is_closing = is_closing
        self.close = close


class Flow(FlowControl):
    """uvicorn's flow control, which also calls `on_resume` when the app wants more of the body."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        """Continue reading."""
        super().resume_reading()
        self._on_resume()
