"""Owns a client's transport: its buffers, what uvicorn sees of it, and an end that costs no client its response."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import FlowControl

from parley.framing import ReadBudget

if sys.platform == "linux":
    import fcntl
    import termios

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.protocols.http.h11_impl import H11Protocol

# What may be on its way to a client that does not read: a stream's text is small, and memory is for those who do.
_SEND_BUFFER_BYTES: Final = 65_536

# What is parsed before the loop serves others; 256 KB can hold 40,000 chunks.
_READ_BYTES: Final = 16_384

# For how long, and how much, a client that was refused may go on sending.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 << 20
_LINGER_BYTES_PER_READ: Final = 4_096

# Where the bytes of each read go; the connections share it, as each copies its bytes before the next read.
_READ_BUFFER: Final = memoryview(bytearray(_READ_BYTES))


def prepare(transport: asyncio.Transport) -> None:
    """Set what a client's connection needs."""
    transport.set_write_buffer_limits(0)  # so that the write deadline runs for whatever is not taken
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    # asyncio sets this only if it created the listening socket. Without it, a chunk can wait up to 40 ms for the
    # client's acknowledgement of the previous chunk.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def unread_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has not taken, as far as the system tells: it buffers many itself."""
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
    """The end of a connection whose client may still be sending: what comes is thrown away until the client closes.

    A connection that is closed with bytes unread is reset, and the client may lose its response (RFC 9112, 9.6).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._discarded = ReadBudget(_LINGER_BYTES, _LINGER_BYTES_PER_READ)
        with suppress(OSError):  # the client has gone
            transport.write_eof()
        self._timer = loop.call_later(_LINGER_S, self._close)

    def discard(self, data: bytes) -> None:
        """Throw away what the client sends, but not without end."""
        self._discarded.spend(len(data))
        if self._discarded.is_spent:
            self._transport.close()

    def stop(self) -> None:
        """Forget the time."""
        self._timer.cancel()

    def _close(self) -> None:
        if self._transport.get_write_buffer_size():  # the client is still reading, within the deadline for that
            self._timer = self._loop.call_later(_LINGER_S, self._close)
        else:
            self._transport.close()


class Reader(asyncio.BufferedProtocol):
    """Reads what a client sends, a little before the loop serves others; everything else is the connection's.

    The loops' own buffers hold 256 KB. uvloop fills one up to 32 times in a row, so reading is paused after a read that
    fills this one.
    """

    def __init__(self, connection: H11Protocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._transport = transport
        self._loop = loop

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the loop's wish
        """Return where the next read goes."""
        return _READ_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Give what was read to the connection."""
        if nbytes == _READ_BYTES:
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)
        self._connection.data_received(bytes(_READ_BUFFER[:nbytes]))

    def _go_on(self) -> None:
        if not self._connection.flow.read_paused:
            self._transport.resume_reading()

    def eof_received(self) -> None:
        """Tell the connection."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """Tell the connection."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Tell the connection."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the connection."""
        self._connection.connection_lost(exc)


class ClientTransport:
    """A transport whose end is the connection's decision; writing takes no detour."""

    def __init__(self, transport: asyncio.Transport, is_closing: Callable[[], bool], close: Callable[[], None]) -> None:
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write = transport.write
        self.is_closing = is_closing
        self.close = close


class Flow(FlowControl):
    """uvicorn's flow control, which also tells when the app wants more of the body."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        """Go on reading."""
        super().resume_reading()
        self._on_resume()
