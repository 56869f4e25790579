"""The event loops: uvloop, or asyncio's if uvloop is not installed. Clients and upstreams see no difference."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

import anyio
import httpx_sse
import pytest
import trustme

from parley.chat.errors import ErrorCode
from parley.testing.upstream import ScriptedUpstream, answer, delta
from parley.wire.schema import ErrorChunk
from tests.support.out_of_turn import LAST_CHUNK, WAYS, WHOLE, First, OutOfTurn, chunked
from tests.support.process import LOOPS, leading_to, parley, resident_kb
from tests.support.running import decode_chunk, sending, stream
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

    from parley.testing.exchange import Exchange
    from tests.support.process import Parley

MOST_GROWTH_KB = 20_000
WRITE_TIMEOUT_S = 2.0

pytestmark = pytest.mark.long

each_loop = pytest.mark.parametrize("loop", LOOPS)
on_each_loop = pytest.mark.parametrize("shared", LOOPS, indirect=True)


class Shared(NamedTuple):
    """A Parley on one of the loops, for several tests; none of them may have lasting effects."""

    loop: str
    upstream: ScriptedUpstream
    served: Parley


@pytest.fixture(scope="module")
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    """Run a Parley on this loop with a short write timeout, and get one answer from it, which loads much code."""
    limits = {"PARLEY_WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S), "PARLEY_MAX_OUTPUT_TOKENS": "1000000"}
    async with (
        ScriptedUpstream() as upstream,
        parley(*LOOPS[request.param], **leading_to(upstream, **limits)) as served,
    ):
        async with served.client() as client:
            await stream(client, {"message": "Hi"})
        yield Shared(request.param, upstream, served)


def chat(path: str) -> bytes:
    """Return the bytes of a request."""
    body = b'{"message":"Hi"}'
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )


async def endless(exchange: Exchange) -> None:
    """Send text for as long as Parley reads it."""
    await exchange.head()
    while not exchange.gone.is_set():
        await exchange.events(*[delta("word " * 100)] * 100)


@on_each_loop
async def test_parley_runs_on_uvloop_if_it_is_installed(shared: Shared) -> None:
    """Otherwise it runs on asyncio's own loop."""
    mapped = await anyio.Path(f"/proc/{shared.served.process.pid}/maps").read_text()
    assert ("/uvloop/" in mapped) == (shared.loop == "uvloop")


# The write buffer


@on_each_loop
async def test_clients_that_do_not_read_fill_no_memory_and_are_cut_off(shared: Shared) -> None:
    """The upstream can send without end; the write timeout starts when the buffer is full."""
    _, upstream, served = shared
    upstream.script = endless
    before_kb = resident_kb(served.process.pid)
    async with served.client() as client, AsyncExitStack() as stack:
        for _ in range(20):
            _, transport = await stack.enter_async_context(sending(client, chat("/chat")))
            transport.pause_reading()
        with anyio.fail_after(60):
            while len(cut := served.logs.lines("connection_timed_out")) < 20:
                await served.logs.written()
        assert resident_kb(served.process.pid) - before_kb < MOST_GROWTH_KB
    assert {line["awaited"] for line in cut} == {"client"}


@on_each_loop
async def test_a_client_that_reads_slowly_but_steadily_gets_all(shared: Shared) -> None:
    """The client takes longer than the write timeout in total, but reads something within each."""
    _, upstream, served = shared
    text = "x" * 900_000
    upstream.script = answer(text)
    before = len(served.logs.lines("connection_timed_out"))
    async with served.client() as client, sending(client, chat("/chat/complete")) as (reader, _):
        begun = asyncio.get_running_loop().time()
        received = b""
        while (missing := len(text) - received.count(b"x")) > 0:
            received += await reader.readexactly(min(missing, 60_000))
            await asyncio.sleep(WRITE_TIMEOUT_S / 5)  # the client is slow
        assert asyncio.get_running_loop().time() - begun > 2 * WRITE_TIMEOUT_S
        assert len(served.logs.lines("connection_timed_out")) == before


# Signals


@each_loop
async def test_a_second_ctrl_c_tells_the_caller_and_ends_parley(upstream: ScriptedUpstream, loop: str) -> None:
    """Both signals arrive while the loop waits for something else."""
    upstream.script = Gated()
    async with parley(*LOOPS[loop], **leading_to(upstream)) as served, served.client() as client:
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json={"message": "Hi"}) as source:
            events = source.aiter_sse()
            await anext(events)
            await served.interrupt_twice()
            chunks = [decode_chunk(event.data) async for event in events]
        assert isinstance(chunks[-1], ErrorChunk)
        assert chunks[-1].error.code is ErrorCode.SHUTTING_DOWN
        assert await served.wait() == 0


# IPv6


@each_loop
async def test_clients_and_upstreams_can_use_ipv6(loop: str) -> None:
    """Parley tells callers apart by their addresses, so it must see them."""
    async with (
        ScriptedUpstream(host="::1") as upstream,
        parley(*LOOPS[loop], **leading_to(upstream, PARLEY_HOST="::1", PARLEY_REQUESTS_PER_MINUTE="1")) as served,
        served.client() as client,
    ):
        chunks = await stream(client, {"message": "Hi"})
        assert chunks[-1].__struct_config__.tag == "done"
        assert (await client.post("/chat", json={"message": "Hi"})).status_code == 429


# Connections to the upstream


async def ask(client: httpx.AsyncClient, word: str) -> str:
    """Ask for a word and return the answer."""
    return str((await client.post("/chat/complete", json={"message": word})).json()["text"])


@each_loop
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "TLS"])
async def test_a_connection_that_spoke_out_of_turn_is_not_used_again(
    tmp_path: Path, loop: str, *, is_encrypted: bool
) -> None:
    """The upstream sends a response or a part of one, or closes the connection."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with ScriptedUpstream(tls=tls if is_encrypted else None) as upstream:
        variables = leading_to(upstream, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        async with parley(*LOOPS[loop], **variables) as served, served.client() as client:
            for way in ("a chunked answer", "half a status line", "100", "FIN"):
                for when in (-1.0, 0.0):
                    before = len(upstream.connections)
                    first = First(chunked(WHOLE), lambda _: asyncio.sleep(0), end=LAST_CHUNK)
                    script = OutOfTurn(upstream, first, WAYS[way], when)
                    assert await ask(client, "first") == "first"
                    await script.spoken.wait()
                    assert await ask(client, "second") == "second"
                    assert len(upstream.connections) == before + 2, way


@on_each_loop
async def test_a_kept_connection_is_used_again(shared: Shared) -> None:
    """The upstream has sent nothing but its responses over it."""
    _, upstream, served = shared
    upstream.script = answer("Hello")
    async with served.client() as client:
        assert await ask(client, "Hi") == "Hello"
        before = len(upstream.connections)
        for _ in range(10):
            assert await ask(client, "Hi") == "Hello"
    assert len(upstream.connections) == before
