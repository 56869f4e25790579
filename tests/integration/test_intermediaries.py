"""Proxies between Parley and its client, and clients that read line by line."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from parley.settings import Secret
from parley.testing.faults import pause
from parley.testing.upstream import answer, delta
from tests.support.canaries import CANARY_KEY
from tests.support.running import kind, read_chunks, running, sending

if TYPE_CHECKING:
    from collections.abc import Callable

    from parley.settings import Settings
    from parley.testing.exchange import Exchange
    from parley.testing.upstream import ScriptedUpstream

    MakeSettings = Callable[..., Settings]

LINE_ENDS = "a\u2028b\u2029c\x85d"
PROBE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


async def live(reader: asyncio.StreamReader, writer: asyncio.Transport) -> bool:
    """Return whether Parley answers a health check over this connection."""
    writer.write(PROBE)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
    return head.startswith(b"HTTP/1.1 200 ")


async def silence_s(reader: asyncio.StreamReader, most_s: float) -> float:
    """Return for how many seconds nothing arrives, not even the end of the connection; stop after `most_s`."""
    now = asyncio.get_running_loop().time
    begun = now()
    with anyio.move_on_after(most_s):
        assert await reader.read(1) == b""
    return now() - begun


async def test_what_is_not_a_stream_may_not_be_stored(make_settings: MakeSettings) -> None:
    """This holds for chats, health, metrics, the contract, errors, CORS and malformed requests."""
    key = {"Authorization": f"Bearer {CANARY_KEY}"}
    browser = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with running(make_settings(api_keys=Secret(CANARY_KEY), cors_origins="https://app.example")) as client:
        responses = [
            await client.post("/chat/complete", json={"message": "hi"}, headers=key),
            *[await client.get(path) for path in ("/health/live", "/health/ready", "/schema", "/schema/openapi.yaml")],
            await client.get("/metrics", headers=key),
            await client.get("/nothing"),
            await client.put("/chat"),
            await client.post("/chat"),
            await client.post("/chat", json={}, headers=key),
            *[
                await client.options("/chat", headers={**browser, "Origin": origin})
                for origin in ("https://app.example", "null")
            ],
            await client.get("/", headers={"x": "x" * 100_000}),
        ]
    assert [response.status_code for response in responses] == [200] * 6 + [404, 405, 401, 400, 204, 400, 400]
    assert [response.headers.get_list("cache-control") for response in responses] == [["no-store"]] * len(responses)


async def test_no_client_that_reads_lines_breaks_an_answer(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """This holds for a stream, a complete answer, and an error that quotes the caller."""
    upstream.script = answer(LINE_ENDS)
    async with client.stream("POST", "/chat", json={"message": "hi"}) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [chunk["type"] for chunk in chunks] == ["start", "text", "done"]
    assert chunks[1]["text"] == LINE_ENDS
    whole = await client.post("/chat/complete", json={"message": "hi"})
    assert (whole.json()["text"], len(whole.text.splitlines())) == (LINE_ENDS, 1)
    refused = await client.post("/chat", json={"message": "hi", LINE_ENDS: 1})
    assert (refused.status_code, len(refused.text.splitlines())) == (400, 1)


async def test_a_client_with_httpxs_own_timeout_survives_every_silence(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """By default, httpx waits 5 seconds for the next byte, and so do many proxies."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await pause(exchange, 14)
        await exchange.events(delta("a"))
        await pause(exchange, 9)
        await exchange.events(delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    upstream.script = script
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as impatient:
        assert impatient.timeout == httpx.Timeout(5)
        response = await impatient.post("/chat", json={"message": "hi"})
    assert response.content.count(b": ping\n") == 3 + 2
    assert response.content.startswith(b": ping\n"), "the headers do not go out alone"
    assert [kind(chunk) for chunk in read_chunks(response.content)] == ["start", "text", "done"]


async def test_an_idle_connection_outlives_those_of_a_proxys_pool(client: httpx.AsyncClient) -> None:
    """A proxy such as nginx keeps idle connections for 60 seconds; Parley must not close them first."""
    async with sending(client, b"") as (reader, writer):
        assert await live(reader, writer)
        assert await silence_s(reader, 65) == pytest.approx(65, abs=0.5)
        assert await live(reader, writer)
        assert await silence_s(reader, 80) == pytest.approx(75, abs=0.5)


@pytest.mark.parametrize("keep_alive_s", [2.0, 10.0])
async def test_idle_connections_are_kept_as_long_as_the_operator_says_but_hold_up_no_stop(
    make_settings: MakeSettings, keep_alive_s: float
) -> None:
    """When Parley drains, idle connections are closed at once."""
    async with running(make_settings(keep_alive_s=keep_alive_s)) as client, sending(client, b"") as (reader, writer):
        assert await live(reader, writer)
        assert await silence_s(reader, keep_alive_s + 5) == pytest.approx(keep_alive_s, abs=0.5)
    async with running(make_settings(keep_alive_s=keep_alive_s)) as client:
        kept = sending(client, b"")
        reader, writer = await kept.__aenter__()
        assert await live(reader, writer)
    assert await silence_s(reader, 1) == pytest.approx(0, abs=0.5)
    await kept.__aexit__(None, None, None)
