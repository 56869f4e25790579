"""The ways in which an upstream sends data out of turn on a kept connection, each by name."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.lowlevel

from parley.testing.exchange import Exchange
from parley.testing.faults import pause, sse
from parley.testing.upstream import delta, respond

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx

    from parley.testing.upstream import ScriptedUpstream

# Seconds after the end of the answer; below 0, in one write with the whole answer, or with its end.
WITH_THE_ANSWER, WITH_ITS_END = -2.0, -1.0
WHENS = {
    "with the answer": WITH_THE_ANSWER,
    "with its end": WITH_ITS_END,
    "right after": 0.0,
    "20 ms later": 0.02,
    "1 s later": 1.0,
}

LAST_CHUNK = b"0\r\n\r\n"
STALE = sse(delta("stale"), delta(finish_reason="stop"), "[DONE]")
WHOLE = sse(delta("first"), delta(finish_reason="stop"), "[DONE]")


def chunk(body: bytes) -> bytes:
    """Encode one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def head(status: str = "200 OK", *headers: str, content_type: str = "text/event-stream") -> bytes:
    """Return a status line and headers."""
    return "\r\n".join([f"HTTP/1.1 {status}", f"content-type: {content_type}", *headers, "", ""]).encode()


def chunked(body: bytes) -> bytes:
    """Return a response with one chunk, without the last chunk."""
    return head("200 OK", "transfer-encoding: chunked") + chunk(body)


def sized(body: bytes, status: str = "200 OK", content_type: str = "text/event-stream") -> bytes:
    """Return a response with a Content-Length header."""
    return head(status, f"content-length: {len(body)}", content_type=content_type) + body


def refused(status: str) -> bytes:
    """Return an HTTP error."""
    return sized(b'{"error":{"message":"stale"}}', status, "application/json")


@dataclass(frozen=True)
class Way:
    """What the upstream does after the end of an answer."""

    says: bytes = b""
    then: Callable[[Exchange], None] = lambda _: None
    rest: bytes = b""
    """What the upstream sends when it has received the next request."""


def half_close(exchange: Exchange) -> None:
    """Send a FIN, and continue to read."""
    exchange.writer.write_eof()


_ANSWER = chunked(STALE) + LAST_CHUNK
WAYS = {
    # A complete response.
    "a chunked answer": Way(_ANSWER),
    "an answer with a content-length": Way(sized(STALE)),
    "an answer that a FIN ends": Way(head() + STALE, Exchange.close),
    "an answer that nothing ends": Way(head() + STALE),
    "two answers": Way(_ANSWER + sized(STALE)),
    "an answer in HTTP/1.0": Way(sized(STALE).replace(b"/1.1", b"/1.0")),
    "a JSON answer": Way(sized(b'{"choices": []}', content_type="application/json")),
    "an empty answer": Way(sized(b"")),
    "204": Way(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304": Way(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "400": Way(refused("400 Bad Request")),
    "401": Way(refused("401 Unauthorized")),
    "429": Way(refused("429 Too Many Requests")),
    "500": Way(refused("500 Internal Server Error")),
    "408 that announces the close": Way(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"),
    "408 and a FIN": Way(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n", Exchange.close),
    # A part of a response.
    "half a status line": Way(b"HTTP/1.1 20"),
    "a status line": Way(b"HTTP/1.1 200 OK\r\n"),
    "half of the headers": Way(_ANSWER[:40]),
    "the headers": Way(head("200 OK", "content-length: 500")),
    "half a body": Way(sized(STALE)[:-20]),
    "half a status line, the rest later": Way(_ANSWER[:11], rest=_ANSWER[11:]),
    "half of the headers, the rest later": Way(_ANSWER[:40], rest=_ANSWER[40:]),
    "half a body, the rest later": Way(_ANSWER[:120], rest=_ANSWER[120:]),
    # An interim response.
    "100": Way(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "102": Way(b"HTTP/1.1 102 Processing\r\n\r\n"),
    "103": Way(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"),
    "100, an answer later": Way(b"HTTP/1.1 100 Continue\r\n\r\n", rest=_ANSWER),
    "101": Way(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    # More of the response that has ended.
    "a chunk after the last": Way(chunk(STALE) + LAST_CHUNK),
    "the last chunk again": Way(LAST_CHUNK),
    "trailers after the end": Way(b"x-trailer: 1\r\n\r\n"),
    "events without HTTP": Way(STALE),
    # Data that is not part of a response.
    "a line end": Way(b"\r\n"),
    "a thousand line ends": Way(b"\r\n" * 1000),
    "one byte": Way(b"x"),
    "a NUL": Way(b"\0"),
    "a space": Way(b" "),
    "garbage": Way(b"\xff\xfe garbage \r\n\r\n"),
    "a MiB of garbage": Way(b"x" * (1 << 20)),
    "a request": Way(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a TLS alert": Way(b"\x15\x03\x03\x00\x02\x02\x28"),
    "HTTP/2": Way(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
    # The end of the connection.
    "FIN": Way(then=Exchange.close),
    "RST": Way(then=Exchange.abort),
    "half-close": Way(then=half_close),
    "one byte and FIN": Way(b"x", Exchange.close),
    "an answer and RST": Way(_ANSWER, Exchange.abort),
    "an answer and half-close": Way(_ANSWER, half_close),
}

# An answer that seems complete, and what follows much later.
LATE_ENDS = {
    "the last chunk": (chunked(WHOLE), LAST_CHUNK),
    "half of the last chunk": (chunked(WHOLE) + LAST_CHUNK[:2], LAST_CHUNK[2:]),
    "trailers": (chunked(WHOLE) + LAST_CHUNK[:3], b"x-trailer: 1\r\n\r\n"),
    "another chunk": (chunked(WHOLE), chunk(STALE) + LAST_CHUNK),
    "a chunk whose size is garbage": (chunked(WHOLE), b"x\r\n" + LAST_CHUNK),
    "the body's last bytes": (head("200 OK", f"content-length: {len(WHOLE) + 10}") + WHOLE, b": the end\n"),
    "nothing": (head() + WHOLE, b""),
    "the last chunk, and an answer": (chunked(WHOLE), LAST_CHUNK + _ANSWER),
    "an answer instead": (chunked(WHOLE), _ANSWER),
}


@dataclass(frozen=True)
class First:
    """A first exchange: the upstream's response, and how to call Parley."""

    says: bytes
    ask: Callable[[httpx.AsyncClient], Awaitable[None]]
    end: bytes = LAST_CHUNK
    is_cut: bool = False
    """Whether Parley leaves before the end."""


class OutOfTurn:
    """The upstream's script: a first exchange and data out of turn; after that, responses that close the connection."""

    def __init__(self, upstream: ScriptedUpstream, first: First, way: Way, when: float) -> None:
        self.left = asyncio.Event()
        self.spoken = asyncio.Event()
        self.spoke: list[Exchange] = []
        self._first = first
        self._way = way
        self._when = when
        upstream.script = upstream.models_script = self

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request."""
        if self.spoke:
            if self._way.rest:
                self.spoke[0].send_raw(self._way.rest)
            await echo(exchange)
            return
        self.spoke.append(exchange)
        end = self._first.end
        if self._when == WITH_THE_ANSWER and not self._first.is_cut:
            exchange.send_raw(self._first.says + end + self._way.says)
        else:
            exchange.send_raw(self._first.says)
            await (self.left.wait() if self._first.is_cut else pause(exchange, 0.01))
            if self._when < 0:
                exchange.send_raw(end + self._way.says)
            else:
                exchange.send_raw(end)
                await pause(exchange, self._when)
                exchange.send_raw(self._way.says)
        with suppress(OSError):  # Parley may have closed the connection
            self._way.then(exchange)
        self.spoken.set()


async def echo(exchange: Exchange) -> None:
    """Answer with the last word of the message, and close the connection."""
    if exchange.path.endswith("/models"):
        await respond(200, {}, connection="close")(exchange)
        return
    word = exchange.json["messages"][-1]["content"].split()[-1]
    body = sse(delta(word), delta(finish_reason="stop"), "[DONE]")
    exchange.send_raw(sized(body).replace(b"\r\n", b"\r\nconnection: close\r\n", 1))


async def speak(exchange: Exchange, way: Way, turns: int = 0) -> bool:
    """Send out of turn after `turns` turns of the loop, if no request has come by then; return whether it was sent."""
    connection = exchange.writer.get_extra_info("socket")
    with suppress(OSError):  # Parley may have closed the connection
        before = received(connection)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        if received(connection) == before:
            exchange.send_raw(way.says)
            way.then(exchange)
            return True
    return False


def received(connection: socket.socket) -> int:
    """Return how many bytes the kernel has received on a connection, whether read or not."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    count: int = struct.unpack_from("Q", info, 128)[0]
    return count
