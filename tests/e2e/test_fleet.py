"""Two Parleys behind a load balancer, with the documented configuration: no client notices that they restart."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from parley.chat.errors import ErrorCode
from parley.wire.schema import DoneChunk, ErrorChunk, StreamChunk
from tests.support.process import leading_to, parley
from tests.support.proxies import proxy
from tests.support.running import stream
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from parley.testing.upstream import ScriptedUpstream
    from tests.support.process import Parley

STREAMS = 50
PACE_S = 0.1
REQUEST = {"message": "hi"}


@asynccontextmanager
async def balanced(folder: Path, replicas: list[Parley]) -> AsyncIterator[httpx.AsyncClient]:
    """Run HAProxy with the documented configuration, but other ports; yield a client for it."""
    async with (
        proxy("haproxy", folder, *[served.url for served in replicas]) as url,
        httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client,
    ):
        await probed(replicas, times=1)
        yield client


def port_of(served: Parley) -> str:
    """Return the port on which the replica serves."""
    return served.url.rpartition(":")[2]


async def probed(replicas: list[Parley], times: int) -> None:
    """Wait until the load balancer has probed the readiness of each replica `times` more times."""
    for served in replicas:
        before = len(probes(served))
        with anyio.fail_after(60):
            while len(probes(served)) < before + times:
                await served.logs.written()


def probes(served: Parley) -> list[str]:
    """Return the log lines of the load balancer's probes."""
    return [line for line in served.logs.getvalue().splitlines() if '"route":"/health/ready"' in line]


def ended(streams: list[list[StreamChunk]]) -> list[type]:
    """Return the types of the streams' last chunks."""
    return [type(chunks[-1]) for chunks in streams]


@asynccontextmanager
async def replica(upstream: ScriptedUpstream, port: str = "0", **variables: str) -> AsyncIterator[Parley]:
    """Run one replica."""
    async with parley(**leading_to(upstream, PARLEY_PORT=port, **variables)) as served:
        yield served


@pytest.mark.long
async def test_a_rolling_restart_cuts_no_stream(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The drain timeout exceeds the longest answer: running streams complete, and new requests are answered."""
    gated = upstream.script = Gated(pace_s=PACE_S)
    streams: list[list[StreamChunk]] = []
    async with AsyncExitStack() as stack:
        old = [await stack.enter_async_context(replica(upstream)) for _ in range(2)]
        client = await stack.enter_async_context(balanced(tmp_path, old))

        async def ask() -> None:
            streams.append(await stream(client, REQUEST))

        async with anyio.create_task_group() as group:
            for number, leaving in enumerate(old, start=1):
                gated.may_end.clear()
                for _ in range(STREAMS):
                    group.start_soon(ask)
                await gated.begin((2 * number - 1) * STREAMS)
                leaving.process.terminate()
                await leaving.logs.line("Shutting down")
                for _ in range(STREAMS):  # new requests go to the other replica
                    group.start_soon(ask)
                await gated.begin(2 * number * STREAMS)
                gated.may_end.set()
                await leaving.wait()
                new = await stack.enter_async_context(replica(upstream, port_of(leaving)))
                await probed([new], times=2)
    assert ended(streams) == [DoneChunk] * 4 * STREAMS


@pytest.mark.long
async def test_a_restart_that_cannot_wait_ends_each_stream_with_the_truth(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Every stream gets its terminal chunk; the streams of the other replica continue."""
    gated = upstream.script = Gated(pace_s=PACE_S)
    streams: list[list[StreamChunk]] = []
    async with (
        replica(upstream, PARLEY_DRAIN_TIMEOUT_S="1") as first,
        replica(upstream) as second,
        balanced(tmp_path, [first, second]) as client,
    ):

        async def ask() -> None:
            streams.append(await stream(client, REQUEST))

        async with anyio.create_task_group() as group:
            for _ in range(STREAMS):
                group.start_soon(ask)
            await gated.begin(STREAMS)
            first.process.terminate()
            await first.wait()
            gated.may_end.set()
    errors = [chunks[-1] for chunks in streams if isinstance(chunks[-1], ErrorChunk)]
    assert {error.error.code for error in errors} == {ErrorCode.SHUTTING_DOWN}
    assert ended(streams).count(DoneChunk) == STREAMS - len(errors)
    assert 0 < len(errors) < STREAMS
