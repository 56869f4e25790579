"""Clients that send as much as they can, in as many pieces: the cost to the process and to other clients."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.parse
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from parley.testing.upstream import ScriptedUpstream, hang
from tests.support.canaries import CANARY_KEY
from tests.support.cost import measuring
from tests.support.process import leading_to, parley
from tests.support.running import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.process import Parley

MOST_CPU_S = 0.5
MOST_STALL_S = 0.1
MOST_GROWTH_KB = 50_000

KEY = {"Authorization": f"Bearer {CANARY_KEY}"}
UNKNOWN = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
KNOWN = UNKNOWN + b"Authorization: Bearer " + CANARY_KEY.encode() + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
STREAM = KNOWN + b'Content-Length: 16\r\n\r\n{"message":"Hi"}'
CLOSING_STREAM = KNOWN + b'Connection: close\r\nContent-Length: 16\r\n\r\n{"message":"Hi"}'
TINY = b"1\r\nx\r\n"


@dataclass
class Flood:
    """What a client sends: `head`, then `pieces` times `piece`, in a single write or in one write per piece."""

    head: bytes
    piece: bytes
    pieces: int
    status: bytes
    """The status of the response, or empty if Parley cuts the client off."""
    is_dripped: bool = False

    def run(self, port: int) -> bytes:
        """Send the flood, and return what Parley sent until the connection was closed.

        It is read at once: a client that first sends for longer than Parley waits for the end would lose it.
        """
        received = bytearray()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = threading.Thread(target=_read, args=(connection, received))
            reader.start()
            with suppress(ConnectionError):
                if self.is_dripped:
                    connection.sendall(self.head)
                    for _ in range(self.pieces):
                        connection.sendall(self.piece)
                else:
                    connection.sendall(self.head + self.piece * self.pieces)
            reader.join()
        return bytes(received)


def _read(connection: socket.socket, received: bytearray) -> None:
    with suppress(ConnectionError):
        while data := connection.recv(65_536):
            received += data


FLOODS = {
    "tiny chunks without a key": Flood(UNKNOWN + CHUNKED, TINY, 1_000_000, b"401"),
    "tiny chunks": Flood(KNOWN + CHUNKED, TINY, 1_000_000, b"400"),
    "tiny chunks of another type": Flood(KNOWN.replace(b"/json", b"/xml") + CHUNKED, TINY, 1_000_000, b"400"),
    "tiny chunks to nowhere": Flood(KNOWN.replace(b"/chat", b"/x") + CHUNKED, TINY, 1_000_000, b"404"),
    "chunks as small as may be": Flood(KNOWN + CHUNKED, b"40\r\n" + b"x" * 64 + b"\r\n", 100_000, b"413"),
    "chunk sizes": Flood(KNOWN + CHUNKED, b"0" * 19 + TINY, 300_000, b"400"),
    "chunk extensions": Flood(KNOWN + CHUNKED, b"1;" + b"e" * 16_000 + b"\r\nx\r\n", 2_000, b"400"),
    "trailers": Flood(KNOWN + CHUNKED + b"0\r\n", b"a: b\r\n", 1_000_000, b"400"),
    "trailers, dripped": Flood(KNOWN + CHUNKED + b"0\r\n", b"a", 500_000, b"400", is_dripped=True),
    "headers": Flood(KNOWN, b"a:\r\n", 1_000_000, b"400"),
    "a header, dripped": Flood(KNOWN + b"X: ", b"x", 500_000, b"400", is_dripped=True),
    "a body, dripped": Flood(KNOWN + b"Content-Length: 1000000\r\n\r\n", b"x", 500_000, b"400", is_dripped=True),
    "a body without a key, dripped": Flood(
        UNKNOWN + b"Content-Length: 1000000\r\n\r\n", b"x", 500_000, b"401", is_dripped=True
    ),
    "a body of 60 MB": Flood(KNOWN + b"Content-Length: 60000000\r\n\r\n", b"x" * 60, 1_000_000, b"413"),
    "blank lines": Flood(b"", b"\r\n", 10_000_000, b"400"),
    "blank lines, dripped": Flood(b"", b"\r\n", 500_000, b"400", is_dripped=True),
    "no HTTP": Flood(b"\x16\x03\x01", b"x" * 30, 1_000_000, b"400"),
    "no HTTP, dripped": Flood(b"\x16\x03\x01", b"x", 500_000, b"400", is_dripped=True),
    "more than a stream": Flood(STREAM, b"x" * 30, 1_000_000, b""),
    "more than a stream, dripped": Flood(STREAM, b"x", 500_000, b"", is_dripped=True),
    "more than the last stream": Flood(CLOSING_STREAM, b"x" * 30, 1_000_000, b""),
}


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Parley]:
    """Run a Parley that requires a key, and get one answer from it, because the first answer loads much code."""
    async with (
        ScriptedUpstream() as upstream,
        parley(**leading_to(upstream, PARLEY_API_KEYS=CANARY_KEY)) as served,
        served.client() as client,
    ):
        await stream(client, {"message": "Hi"}, headers=KEY)
        upstream.script = hang
        yield served


async def test_clients_that_do_not_read_a_large_response_fill_no_memory(served: Parley) -> None:
    """The largest responses are the files of the API reference page, which need no key."""
    address = urllib.parse.urlsplit(served.url)
    request = b"GET /schema/swagger-ui/js/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack, measuring(served) as cost:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
            connection.sendall(request)
            assert connection.recv(12) == b"HTTP/1.1 200"
    assert cost.growth_kb < MOST_GROWTH_KB


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_costs_little_and_holds_up_nobody(served: Parley, flood: Flood) -> None:
    """Parley answers other clients meanwhile; no flood makes one of them wait for long."""
    with measuring(served) as cost:
        received = await asyncio.to_thread(flood.run, urllib.parse.urlsplit(served.url).port or 0)
    assert cost.cpu_s < MOST_CPU_S
    assert cost.stall_s < MOST_STALL_S
    assert cost.growth_kb < MOST_GROWTH_KB
    assert received[: len(b"HTTP/1.1 400")] == (b"HTTP/1.1 " + flood.status if flood.status else b"")
    if flood.status > b"299":
        assert received.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in received.lower()
        assert received.endswith(b"}")
