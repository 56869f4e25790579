"""A client that leaves stops the model, whatever it has sent before; a slow client is served while it keeps reading."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import anyio
import pytest

from parley.testing.faults import after
from parley.testing.upstream import answer, delta, hang
from tests.support.running import BOTH, running, sending

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]

NOTICED_S = 1.0


def chat(path: str = "/chat", message: str = "Hi") -> bytes:
    """Return the bytes of a request."""
    body = b'{"message":"%b"}' % message.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


AHEAD = {
    "nothing": b"",
    "a line end": b"\r\n",
    "a byte": b"x",
    "half a request": chat()[:40],
    "a request": chat(),
    "many requests": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
}


def leave(transport: asyncio.Transport, *, is_reset: bool) -> None:
    """Close the connection with an RST or a FIN."""
    if is_reset:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.write_eof()


async def seconds_until(event: asyncio.Event) -> float:
    """Wait for the event and return the seconds by the loop's clock, which skips idle time."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await event.wait()
    return loop.time() - begun


@BOTH
@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize(("path", "texts"), [("/chat", ()), ("/chat", ("a",)), ("/chat/complete", ("a",))])
@pytest.mark.parametrize("ahead", AHEAD.values(), ids=AHEAD.keys())
async def test_a_client_that_leaves_is_noticed_whatever_it_sent_before(
    client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    logs: Logs,
    path: str,
    texts: tuple[str, ...],
    ahead: bytes,
    *,
    is_reset: bool,
) -> None:
    """The client leaves before the headers, in a silent stream, or while it waits for a complete answer."""
    upstream.script = after(texts, hang)
    async with sending(client, chat(path)) as (reader, transport):
        exchange = await upstream.next_exchange()
        if texts and path == "/chat":
            await reader.readuntil(b'"text":"a"')
        transport.write(ahead)
        await client.get("/health/live")  # by then, Parley has received `ahead`
        leave(transport, is_reset=is_reset)
        assert await seconds_until(exchange.gone) < NOTICED_S
    assert (await logs.line())["outcome"] == "client_disconnected"


@BOTH
@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("ahead", [b"", b"\r\n", chat()])
async def test_a_client_that_leaves_what_it_does_not_read_is_noticed(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, ahead: bytes, *, is_reset: bool
) -> None:
    """A FIN counts as leaving, although the client could go on reading after it."""
    is_blocked = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        while not is_blocked.is_set():
            try:
                await asyncio.wait_for(exchange.events(*[delta("word ")] * 100), 0.5)
            except TimeoutError:
                is_blocked.set()
        await exchange.gone.wait()

    upstream.script = script
    async with sending(client, chat()) as (_, transport):
        exchange = await upstream.next_exchange()
        transport.write(ahead)
        await is_blocked.wait()
        leave(transport, is_reset=is_reset)
        assert await seconds_until(exchange.gone) < NOTICED_S
    assert (await logs.line())["outcome"] == "client_disconnected"


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("missing", [1, 16])
async def test_a_client_that_leaves_in_its_request_is_noticed(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, missing: int, *, is_reset: bool
) -> None:
    """The rest of the body never arrives."""
    async with sending(client, chat()[:-missing]) as (_, transport):
        await client.get("/health/live")  # by then, Parley is serving the request
        leave(transport, is_reset=is_reset)
        line = await logs.line()
    assert (line["outcome"], line["status"]) == ("client_disconnected", 499)
    assert line["total_ms"] < NOTICED_S * 1000
    assert upstream.exchanges == []


@BOTH
@pytest.mark.parametrize("between", [b"", b"\r\n", b"\r\n" * 50])
async def test_requests_that_are_sent_ahead_are_served_in_their_order(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, between: bytes
) -> None:
    """Each request is served once the previous one has its response."""

    async def echo(exchange: Exchange) -> None:
        assert len(upstream.exchanges) == answered + 1
        await answer(exchange.message)(exchange)

    upstream.script = echo
    words = ["one", "two", "three", "four"]
    answered = 0
    async with sending(client, between.join(chat(message=word) for word in words)) as (reader, _):
        with anyio.fail_after(60):
            for word in words:
                await reader.readuntil(b'"text":"%b"' % word.encode())
                answered += 1
                await reader.readuntil(b"\r\n0\r\n\r\n")


@BOTH
async def test_a_client_that_sends_too_much_ahead_is_cut_off(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Parley would have to buffer the bytes, or stop reading and not notice that the client leaves."""
    upstream.script = after(("a",), hang)
    async with sending(client, chat()) as (reader, transport):
        exchange = await upstream.next_exchange()
        await reader.readuntil(b'"text":"a"')
        transport.write(b"x" * 100_000)
        assert await seconds_until(exchange.gone) < NOTICED_S
    assert (await logs.line())["outcome"] == "client_disconnected"
    assert (await logs.line("connection_cut"))["reason"] == "sent_ahead"


# Slow readers


@BOTH
@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize("bytes_per_s", [2_000, 20_000])
async def test_a_client_that_reads_slowly_but_steadily_gets_all(
    make_settings: MakeSettings, upstream: ScriptedUpstream, path: str, bytes_per_s: int
) -> None:
    """The client reads something within each write timeout, but never everything that is available."""
    text = "x" * 45 * bytes_per_s
    upstream.script = answer(text)
    async with running(make_settings(request_timeout_s=60)) as client, sending(client, chat(path)) as (reader, _):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        received = b""
        while received.count(b"x") < len(text):
            received += await reader.readexactly(bytes_per_s if len(text) - received.count(b"x") > bytes_per_s else 1)
            await asyncio.sleep(1 if len(received) < len(text) else 0)  # the client is slow
        assert loop.time() - begun > 40


@BOTH
async def test_a_client_that_stops_reading_is_cut_off_after_the_time_since_it_took_something(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """How long the client was reading before makes no difference."""
    upstream.script = answer("x" * 900_000)
    async with (
        running(make_settings(request_timeout_s=60), logs) as client,
        sending(client, chat("/chat/complete")) as (reader, transport),
    ):
        for _ in range(20):
            await reader.readexactly(20_000)
            await asyncio.sleep(1)  # the client is slow
        stopped = asyncio.get_running_loop().time()
        transport.pause_reading()
        assert (await logs.line("connection_timed_out"))["awaited"] == "client"
        # The client's operating system may still accept bytes for a moment.
        assert 7 < asyncio.get_running_loop().time() - stopped < 20
