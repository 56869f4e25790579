"""Measures whether memory stays flat over minutes of complete streams, abandoned streams and refusals."""

from __future__ import annotations

import asyncio
import sys
import time

import httpx

from tests.bench.load import Load, run
from tests.bench.tokens import answers, free_port, serving


async def leave(port: int) -> None:
    """Leave a stream after its first bytes."""
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
        client.stream("POST", f"http://127.0.0.1:{port}/chat", json={"message": "2000 tokens at 50/s"}) as response,
    ):
        async for _ in response.aiter_bytes():
            break


async def main() -> None:
    """Print the resident memory every half minute."""
    minutes = float(sys.argv[1])
    upstream, port = free_port(), free_port()
    variables = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "PARLEY_MODEL": "bench-1",
        "PARLEY_PORT": str(port),
        "PARLEY_REQUEST_TIMEOUT_S": "60",
    }
    with (
        serving(upstream, "-m", "tests.bench.upstream", str(upstream)),
        serving(port, "-m", "parley", **variables) as server,
    ):
        await answers(upstream)
        await answers(port)
        started = shown = time.monotonic()
        streams = 0
        while time.monotonic() - started < minutes * 60:
            result = await run(Load(streams=50, tokens=100), port)
            refused = await run(Load(streams=5, tokens=0, path="/nothing"), port)
            await asyncio.gather(*(leave(port) for _ in range(5)))
            streams += 60
            assert not result.errors
            assert not refused.errors
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                print(f"{shown - started:5.0f} s, {streams:7,} streams: {server.resident_kb() / 1024:.1f} MB")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
