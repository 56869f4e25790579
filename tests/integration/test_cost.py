"""What a token costs, counted in calls of Parley's own functions, which no machine makes faster or slower."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx_sse
import pytest

import parley
from tests.support.faults import sse
from tests.support.upstream import Exchange, ScriptedUpstream, delta

if TYPE_CHECKING:
    from types import FrameType

    import httpx

# What libraries do is theirs to change; `just bench` measures the whole.
OURS = str(Path(parley.__file__).parent)


class Calls:
    """Counts calls, which a coroutine that goes on is too, while it is open."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        """Count."""
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        """Count no more."""
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            self.number += 1


async def read(client: httpx.AsyncClient, seen: asyncio.Event) -> int:
    """Read a stream, saying when a text has come; return the calls that it took."""
    with Calls() as calls:
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json={"message": "Hi"}) as source:
            async for event in source.aiter_sse():
                if event.event == "text":
                    seen.set()
                last = event.event
    assert last == "done"
    return calls.number


def paced(tokens: int, seen: asyncio.Event) -> Any:
    """Send each token when the client has seen the one before."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(tokens):
            seen.clear()
            await exchange.events(delta("word "))
            await seen.wait()
        await exchange.events(delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    return script


def burst(tokens: int, _: asyncio.Event) -> Any:
    """Send all tokens at once."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(sse(*[delta("word ")] * tokens, delta(finish_reason="stop"), "[DONE]"))
        await exchange.end()

    return script


@pytest.mark.parametrize(("script", "few", "many", "allowed"), [(paced, 20, 120, 21), (burst, 200, 2200, 1.1)])
async def test_a_token_costs_no_more_than_it_did(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, script: Any, few: int, many: int, allowed: float
) -> None:
    """One that comes alone, and one that comes with many; the cost of the request itself cancels out."""
    seen = asyncio.Event()
    calls = []
    for tokens in (few, few, many):  # the first is to warm up
        upstream.script = script(tokens, seen)
        calls.append(await read(client, seen))
    cost = (calls[2] - calls[1]) / (many - few)
    assert cost <= allowed
