"""More connections than file descriptors: which connections are accepted, and the cost."""

from __future__ import annotations

import asyncio
import resource
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from parley.chat.errors import ErrorCode
from tests.support.process import cpu_s, leading_to, parley
from tests.support.running import problem, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from parley.testing.upstream import ScriptedUpstream
    from tests.support.process import Parley

pytestmark = pytest.mark.long

REQUEST = {"message": "Hi"}
OPEN_FILES = 300
ROOM = OPEN_FILES - 20 - 64 - 16
"""The descriptors that remain beside those for streams, for the process itself and for health checks."""
HALF_A_REQUEST = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\nExpect: 100-continue\r\n\r\n"

Connections = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@asynccontextmanager
async def limited(upstream: ScriptedUpstream, command: str = f"ulimit -n {OPEN_FILES}") -> AsyncIterator[Parley]:
    """Start a Parley with a low limit on open files."""
    variables = leading_to(upstream, PARLEY_MAX_STREAMS="20", PARLEY_READ_TIMEOUT_S="60")
    async with parley("sh", "-c", f'{command} && exec "$0" "$@"', **variables) as served:
        yield served


@asynccontextmanager
async def connected(served: Parley, number: int, data: bytes = b"") -> AsyncIterator[Connections]:
    """Open connections, twenty at a time, and send the same data over each."""
    connections: Connections = []
    async with served.client() as client:

        async def connect() -> None:
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            connections.append((reader, writer))
            writer.write(data)

        try:
            for _ in range(0, number, 20):
                await asyncio.gather(*[connect() for _ in range(20)])
            yield connections
        finally:
            for _, writer in connections:
                writer.transport.abort()


async def test_the_limit_of_open_files_is_raised(upstream: ScriptedUpstream) -> None:
    """The usual soft limit is meant for programs that cannot use more descriptors."""
    async with limited(upstream, "ulimit -Sn 300 && ulimit -Hn 2000") as served:
        assert resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE) == (2000, 2000)


async def test_who_has_been_idle_for_longest_gives_way(upstream: ScriptedUpstream) -> None:
    """New requests, probes and metrics take its place; Parley logs once when this begins, and once when it ends."""
    async with limited(upstream) as served, served.client() as client:
        async with connected(served, 2 * ROOM) as connections:
            begun = cpu_s(served.process.pid)
            for path in ("/health/live", "/health/ready", "/metrics"):
                assert (await client.get(path)).status_code == 200
            assert (await stream(client, REQUEST))[-1].__struct_config__.tag == "done"
            with anyio.fail_after(60):
                for reader, _ in connections[:ROOM]:
                    assert await reader.read() == b""
            newest, writer = connections[-1]
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await newest.readline()).startswith(b"HTTP/1.1 200 ")
            assert cpu_s(served.process.pid) - begun < 2
            (full,) = served.logs.lines("connections_full")
            assert (full["level"], full["connections"], full["open_files"]) == ("warning", ROOM, OPEN_FILES)
            assert "ulimit" in full["remedy"]
        assert (await served.logs.line("connections_free"))["level"] == "info"


async def test_where_none_is_idle_only_probes_get_in(upstream: ScriptedUpstream) -> None:
    """All other requests are refused, as in any overload."""
    async with limited(upstream) as served, served.client() as client:
        async with connected(served, ROOM, HALF_A_REQUEST) as connections:
            for reader, _ in connections:
                assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")  # the request is being served
            for _ in range(40):  # more requests than there are descriptors for health checks
                assert (await client.head("/chat")).status_code == 405
                response = await client.post("/chat", json=REQUEST)
                error = problem(response)
                assert (response.status_code, error.code, error.retry_after_s) == (503, ErrorCode.OVERLOADED, 1)
                assert response.headers["connection"] == "close"
                for path in ("/health/live", "/metrics"):
                    assert (await client.get(path)).status_code == 200
            assert 'parley_chats_total{ending="overloaded"} 40.0' in (await client.get("/metrics")).text
        await served.logs.line("connections_free")
        refused = [line["status"] for line in served.logs.lines("request") if line["error_code"] == "overloaded"]
        assert refused == [503] * 40
        await stream(client, REQUEST)


async def test_a_flood_of_connections_leaves_room_for_probes(upstream: ScriptedUpstream) -> None:
    """For any number of connections, nothing fails for lack of a descriptor."""
    async with limited(upstream) as served, served.client() as client, connected(served, 1000, HALF_A_REQUEST):
        for _ in range(5):
            with anyio.fail_after(60):
                assert (await client.get("/health/live")).status_code == 200
    assert served.logs.lines("cannot_accept") == []
    assert len(served.logs.lines("connections_full")) == 1


async def test_without_descriptors_nothing_is_accepted_and_little_is_done(upstream: ScriptedUpstream) -> None:
    """Parley logs once when this begins, and once when it ends; existing connections are still served."""
    async with limited(upstream) as served, served.client() as client:
        await client.get("/health/live")
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        async with connected(served, 100):
            cannot = await served.logs.line("cannot_accept")
            begun = cpu_s(served.process.pid)
            for _ in range(20):
                assert (await client.get("/health/live")).status_code == 200
                await asyncio.sleep(0.1)  # as long as asyncio waits before it tries again
            assert cpu_s(served.process.pid) - begun < 0.5
            assert (cannot["level"], cannot["open_files"]) == ("warning", 60)
        await served.logs.line("can_accept")
        async with served.client() as another:
            assert (await another.get("/health/live")).status_code == 200
    assert len(served.logs.lines("cannot_accept")) == 1
    assert "out of system resource" not in served.logs.getvalue()
