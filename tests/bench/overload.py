"""Measures Parley at twice its capacity: `just bench`. Speed is a ratio to the same Parley without that load."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import httpx_sse

from parley.testing.faults import pause
from parley.testing.upstream import ScriptedUpstream, delta
from tests.support.process import parley

if TYPE_CHECKING:
    import httpx

    from parley.testing.exchange import Exchange

PLACES = 20
QUEUE = 10
QUEUE_TIMEOUT_S = 0.5
TEXTS = 10
PAUSE_S = 0.05
CAPACITY = PLACES / (TEXTS * PAUSE_S)
"""Answers per second, if only the upstream took time."""


@dataclass
class Load:
    """The outcomes of a number of requests."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    first_text_s: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Complete answers per second."""
        return self.outcomes["done"] / self.seconds

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the wait for the first text, of the requests that were admitted."""
        return sorted(self.first_text_s)[int(len(self.first_text_s) * 0.99)]


async def paced(exchange: Exchange) -> None:
    """Answer at a steady pace."""
    await exchange.head()
    for _ in range(TEXTS):
        await exchange.events(delta("word "))
        await pause(exchange, PAUSE_S)
    await exchange.events(delta(finish_reason="stop"), "[DONE]")
    await exchange.end()


async def ask(client: httpx.AsyncClient, load: Load) -> None:
    """Send one request, and record its outcome."""
    now = asyncio.get_running_loop().time
    asked = now()
    async with httpx_sse.aconnect_sse(client, "POST", "/chat", json={"message": "Hi"}) as source:
        if source.response.status_code != 200:
            code = (await source.response.aread()).partition(b'"code":"')[2].partition(b'"')[0]
            load.outcomes[f"{source.response.status_code} {code.decode()}"] += 1
            return
        load.first_text_s.append(now() - asked)
        async for event in source.aiter_sse():
            last = event.event
        load.outcomes[last] += 1


async def measure(seconds: float) -> tuple[Load, Load]:
    """Run one client per place, each with one request after the other; then send twice the capacity without waiting."""
    now = asyncio.get_running_loop().time
    unloaded, overloaded = Load(), Load()
    async with ScriptedUpstream() as upstream:
        upstream.script = paced
        variables = {
            "OPENAI_BASE_URL": upstream.url,
            "PARLEY_MODEL": "paced-1",
            "PARLEY_MAX_STREAMS": str(PLACES),
            "PARLEY_MAX_QUEUE": str(QUEUE),
            "PARLEY_QUEUE_TIMEOUT_S": str(QUEUE_TIMEOUT_S),
        }
        async with parley(**variables) as served, served.client() as client:
            started = now()

            async def ask_on() -> None:
                while now() - started < seconds:
                    await ask(client, unloaded)

            async with anyio.create_task_group() as group:
                for _ in range(PLACES):
                    group.start_soon(ask_on)
            unloaded.seconds = now() - started

            started = now()
            async with anyio.create_task_group() as group:
                for number in range(int(2 * CAPACITY * seconds)):
                    await anyio.sleep_until(started + number / (2 * CAPACITY))
                    group.start_soon(ask, client, overloaded)
            overloaded.seconds = now() - started
    return unloaded, overloaded


async def main() -> None:
    """Print the figures and their ratios."""
    unloaded, overloaded = await measure(float(sys.argv[1]))
    print(f"unloaded:   {unloaded.goodput:.1f} answers/s, first text p99 {unloaded.p99_s * 1000:.0f} ms")  # noqa: T201
    print(f"overloaded: {overloaded.goodput:.1f} answers/s, first text p99 {overloaded.p99_s * 1000:.0f} ms")  # noqa: T201
    print(f"outcomes:   {dict(overloaded.outcomes)}")  # noqa: T201
    print(f"goodput, overloaded to unloaded: {overloaded.goodput / unloaded.goodput:.2f} (at least 0.85)")  # noqa: T201
    allowed_s = QUEUE_TIMEOUT_S + unloaded.p99_s
    print(f"first text, p99 to what is allowed: {overloaded.p99_s / allowed_s:.2f} (at most 1)")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
