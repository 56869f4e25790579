"""The clients of the benchmark: many streams at once, each timed to the byte, at little cost of their own."""

from __future__ import annotations

import asyncio
import json
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TOKEN = b"word "


@dataclass
class Load:
    """Streams of `tokens` at `rate` per second (0: no limit), begun at `arrivals` per second (0: all at once)."""

    streams: int
    tokens: int
    rate: int = 0
    arrivals: int = 0
    path: str = "/chat"
    at_once: int = 0
    """The number of streams at the same time; 0 for all."""
    history: int = 0
    """The number of turns of 500 characters before the message."""

    @property
    def request(self) -> bytes:
        """The complete request."""
        pace = f" at {self.rate}/s" if self.rate else ""
        turns = [{"role": ("user", "assistant")[n % 2], "content": "turn " * 100} for n in range(self.history)]
        body = json.dumps({"message": f"{self.tokens} tokens{pace}", "history": turns}).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        return f"{head}\r\nConnection: close\r\n\r\n".encode() + body


@dataclass
class Result:
    """The results of a load."""

    errors: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One stream."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._loop = asyncio.get_running_loop()
        self.received: list[bytes] = []
        self.times: list[float] = []
        self.first_token_s: float | None = None
        self.ended = self._loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send the request."""
        self._transport = transport
        self._asked = perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Record the data, and the time."""
        self.received.append(data)
        if self.first_token_s is None and TOKEN in data:
            self.first_token_s = perf_counter() - self._asked
        if self.first_token_s is not None:
            self.times.append(perf_counter())
        if data.endswith(b"0\r\n\r\n"):  # a bare upstream does not close the connection
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Mark the stream as ended."""
        if not self.ended.done():
            self.ended.set_result(None)


async def run(load: Load, port: int) -> Result:
    """Run a load against a port; a stream counts as an error unless it has exactly its tokens."""
    loop = asyncio.get_running_loop()
    request = load.request
    clients: list[Client] = []
    started = perf_counter()

    places = asyncio.Semaphore(load.at_once or load.streams)

    async def ask(number: int) -> None:
        if load.arrivals:
            await asyncio.sleep(started + number / load.arrivals - perf_counter())
        async with places:
            _, client = await loop.create_connection(lambda: Client(request), "127.0.0.1", port)
            clients.append(client)
            await client.ended

    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(ask(number))
    result = Result(wall_s=perf_counter() - started)
    for client in clients:
        tokens = b"".join(client.received).count(TOKEN)
        result.tokens += tokens
        result.errors += tokens != load.tokens
        if client.first_token_s is not None:
            result.first_token_s.append(client.first_token_s)
        result.gaps_s += [after - before for before, after in pairwise(client.times)]
    return result


def percentile(values: Iterable[float], percent: int) -> float:
    """Return a percentile."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return ordered[0] if ordered else 0.0
    return statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1]
