"""Two Parleys behind a balancer, with the configuration that is documented: none of their callers sees them restart."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx

from parley.chat.errors import ErrorCode
from parley.web.schema import DoneChunk, ErrorChunk, StreamChunk
from tests.support.installed import need
from tests.support.process import leading_to, parley
from tests.support.running import stream
from tests.support.upstream import Exchange, ScriptedUpstream, delta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.process import Parley

HAPROXY = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
STREAMS = 50
REQUEST = {"message": "hi"}


class Slow:
    """An upstream's script: a text at once, the end when it is told."""

    def __init__(self) -> None:
        self.begun = 0
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Answer."""
        await exchange.head()
        await exchange.events(delta("Hello"))
        self.begun += 1
        self.has_begun.set()
        await self.may_end.wait()
        await exchange.events(delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    async def begin(self, number: int) -> None:
        """Wait until so many answers have begun."""
        while self.begun < number:
            self.has_begun.clear()
            await self.has_begun.wait()


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@asynccontextmanager
async def balanced(folder: Path, ports: list[int]) -> AsyncIterator[httpx.AsyncClient]:
    """Run HAProxy with the documented configuration, but for the ports; yield a client for it."""
    need("haproxy")
    (front,) = free_ports(1)
    config = HAPROXY.read_text()
    for documented, port in zip((8080, 8001, 8002), (front, *ports), strict=True):
        config, changes = re.subn(rf"127\.0\.0\.1:{documented}\b", f"127.0.0.1:{port}", config)
        assert changes == 1
    path = folder / "haproxy.cfg"
    await anyio.Path(path).write_text(config)
    process = await asyncio.create_subprocess_exec("haproxy", "-f", str(path), stderr=asyncio.subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{front}", timeout=60, limits=httpx.Limits(max_connections=None)
        ) as client:
            await answering(client)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def answering(client: httpx.AsyncClient) -> None:
    """Wait until somebody is ready behind the balancer."""
    with anyio.fail_after(60):
        while True:
            try:
                if (await client.get("/health/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)  # another process's readiness can only be asked for


def ended(streams: list[list[StreamChunk]]) -> list[type]:
    """Return the kinds of chunk that they ended with."""
    return [type(chunks[-1]) for chunks in streams]


@asynccontextmanager
async def replica(upstream: ScriptedUpstream, port: int, **variables: str) -> AsyncIterator[Parley]:
    """Run one of them."""
    async with parley(**leading_to(upstream, PARLEY_PORT=str(port), **variables)) as served:
        yield served


async def test_a_rolling_restart_cuts_no_stream(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Where the drain deadline is above the longest answer: each that runs ends whole, each that comes is answered."""
    slow = upstream.script = Slow()
    ports, streams = free_ports(2), list[list[StreamChunk]]()
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(upstream, port)) for port in ports]
        client = await stack.enter_async_context(balanced(tmp_path, ports))

        async def ask() -> None:
            streams.append(await stream(client, REQUEST))

        async with anyio.create_task_group() as group:
            for number, port in enumerate(ports, start=1):
                for _ in range(STREAMS):
                    group.start_soon(ask)
                await slow.begin((2 * number - 1) * STREAMS)
                replicas[number - 1].process.terminate()
                await replicas[number - 1].logs.line("Shutting down")
                for _ in range(STREAMS):  # who comes now gets the other one
                    group.start_soon(ask)
                await slow.begin(2 * number * STREAMS)
                slow.may_end.set()
                await replicas[number - 1].wait()
                replicas.append(await stack.enter_async_context(replica(upstream, port)))
                if number == 1:
                    await both(replicas[1:])
    assert ended(streams) == [DoneChunk] * 4 * STREAMS


async def both(replicas: list[Parley]) -> None:
    """Wait until the balancer has asked each of them whether it is ready, once more than when this began."""
    for served in replicas:
        before = len(probes(served))
        with anyio.fail_after(60):
            while len(probes(served)) < before + 2:
                await served.logs.written()


def probes(served: Parley) -> list[str]:
    """Return the lines of the balancer's probes."""
    return [line for line in served.logs.getvalue().splitlines() if '"route":"/health/ready"' in line]


async def test_a_restart_that_cannot_wait_ends_each_stream_with_the_truth(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """No stream is without its last chunk; those of the other one go on."""
    slow = upstream.script = Slow()
    ports, streams = free_ports(2), list[list[StreamChunk]]()
    async with (
        replica(upstream, ports[0], PARLEY_DRAIN_TIMEOUT_S="1") as first,
        replica(upstream, ports[1]),
        balanced(tmp_path, ports) as client,
    ):

        async def ask() -> None:
            streams.append(await stream(client, REQUEST))

        async with anyio.create_task_group() as group:
            for _ in range(STREAMS):
                group.start_soon(ask)
            await slow.begin(STREAMS)
            first.process.terminate()
            await first.wait()
            slow.may_end.set()
    errors = [chunks[-1] for chunks in streams if isinstance(chunks[-1], ErrorChunk)]
    assert {error.error.code for error in errors} == {ErrorCode.SHUTTING_DOWN}
    assert ended(streams).count(DoneChunk) == STREAMS - len(errors)
    assert 0 < len(errors) < STREAMS
