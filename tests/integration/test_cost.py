"""The cost of a token, counted in calls of Parley's own functions, so that it is the same on every machine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx_sse
import pytest

import parley
from parley.testing.faults import sse
from parley.testing.upstream import ScriptedUpstream, delta

if TYPE_CHECKING:
    from types import FrameType

    import httpx

    from parley.testing.exchange import Exchange

# Calls within libraries are not counted: their number may change. `just bench` measures the total.
OURS = str(Path(parley.__file__).parent)
KIT = str(Path(OURS, "testing"))  # the upstream, which runs in the same loop


class Calls:
    """A counter of calls while it is open; each resumption of a coroutine counts as a call."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        """Start counting."""
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(OURS) and not file.startswith(KIT):
            self.number += 1


async def read(client: httpx.AsyncClient, seen: asyncio.Event) -> int:
    """Read a stream and set `seen` at each text; return the number of calls that it took."""
    with Calls() as calls:
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json={"message": "Hi"}) as source:
            async for event in source.aiter_sse():
                if event.event == "text":
                    seen.set()
                last = event.event
    assert last == "done"
    return calls.number


def paced(tokens: int, seen: asyncio.Event) -> Any:
    """Send each token once the client has seen the previous one."""

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
    """Tokens arrive one by one, or many at once; the request's own cost cancels out."""
    seen = asyncio.Event()
    calls = []
    for tokens in (few, few, many):  # the first one is a warm-up
        upstream.script = script(tokens, seen)
        calls.append(await read(client, seen))
    cost = (calls[2] - calls[1]) / (many - few)
    assert cost <= allowed
