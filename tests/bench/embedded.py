"""Measures the embedded model's tokens per second through Parley and with llama.cpp's bare server, side by side."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import httpx_sse
import msgspec

from parley.chat.watch import Untraced
from parley.providers.embedded import DEFAULT_INSTRUCTIONS, EmbeddedUpstream
from parley.providers.llama_server import Order, Report
from parley.settings import Settings
from parley.telemetry.metrics import metrics
from tests.support.process import parley

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MESSAGE = "Write a very long story about a dragon, with many chapters."
TOKENS = 400
ROUNDS = 5


@asynccontextmanager
async def bare() -> AsyncIterator[httpx.AsyncClient]:
    """Run llama.cpp's server as Parley does, but without Parley."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "parley.providers.llama_server")
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert child.stdin is not None
    assert child.stdout is not None
    order = Order(model_path=str(EmbeddedUpstream(Settings(), metrics(), Untraced()).find_model()), api_key="bench")
    child.stdin.write(msgspec.json.encode(order) + b"\n")
    report = msgspec.json.decode(await child.stdout.readline(), type=Report)
    assert report.url is not None
    headers = {"Authorization": "Bearer bench"}
    async with httpx.AsyncClient(base_url=report.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client
    child.stdin.close()
    await child.wait()


async def tokens_a_second(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> float:
    """Stream one answer, and return the tokens per second between the first event and the last."""
    times: list[float] = []
    async with httpx_sse.aconnect_sse(client, "POST", path, json=body) as source:
        async for _ in source.aiter_sse():
            times.append(time.perf_counter())  # noqa: PERF401  # the time at which each event arrives
    return TOKENS / (times[-1] - times[0])


async def main() -> None:
    """Print the medians and their ratio."""
    ours: list[float] = []
    theirs: list[float] = []
    messages = [{"role": "system", "content": DEFAULT_INSTRUCTIONS}, {"role": "user", "content": MESSAGE}]
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    async with parley(PARLEY_REQUEST_TIMEOUT_S="60") as served, served.client() as client, bare() as server:
        for _ in range(ROUNDS):
            theirs.append(await tokens_a_second(server, "/v1/chat/completions", body))
            ours.append(await tokens_a_second(client, "/chat", {"message": MESSAGE, "max_output_tokens": TOKENS}))
    of_ours, of_theirs = statistics.median(ours), statistics.median(theirs)
    print(f"Parley {of_ours:.1f} tokens/s, llama.cpp's bare server {of_theirs:.1f}: {of_ours / of_theirs:.3f}")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
