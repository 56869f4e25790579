"""Measures the memory that clients that stop reading cost Parley, against a fast upstream: `just bench`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import anyio

from parley.testing.upstream import ScriptedUpstream, delta
from tests.support.process import parley, resident_kb

if TYPE_CHECKING:
    from parley.testing.exchange import Exchange

CLIENTS = 30
BODY = b'{"message":"Hi"}'
REQUEST = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


async def endless(exchange: Exchange) -> None:
    """Send text for as long as Parley reads it."""
    await exchange.head()
    while not exchange.gone.is_set():
        await exchange.events(*[delta("word ")] * 100)


async def main() -> None:
    """Print the growth of Parley's memory."""
    async with ScriptedUpstream() as upstream:
        upstream.script = endless
        # No timeout may end the measurement.
        variables = {"PARLEY_WRITE_TIMEOUT_S": "3600", "PARLEY_REQUEST_TIMEOUT_S": "3600", "PARLEY_LOG_LEVEL": "info"}
        async with parley(OPENAI_BASE_URL=upstream.url, PARLEY_MODEL="endless-1", **variables) as served:
            before, peak = resident_kb(served.process.pid), 0
            host, _, port = served.url.removeprefix("http://").rpartition(":")
            writers = []
            for _ in range(CLIENTS):
                _, writer = await asyncio.open_connection(host, int(port), limit=1024)
                writer.write(REQUEST % (len(BODY), BODY))
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # the transport can read
                writers.append(writer)
            with anyio.move_on_after(float(sys.argv[1])):
                while True:
                    await anyio.sleep_until(anyio.current_time() + 0.5)
                    peak = max(peak, resident_kb(served.process.pid) - before)
            for writer in writers:
                writer.transport.abort()
    print(f"{CLIENTS} clients that do not read: resident memory grew by {peak / 1024:.0f} MB at most (less than 50)")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
