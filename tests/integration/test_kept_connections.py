"""Kept connections on which the upstream speaks out of turn: no caller may get another request's answer."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parley.testing.faults import pause, sse
from parley.testing.upstream import answer, delta
from tests.support.canaries import CANARY
from tests.support.faults import ECHO
from tests.support.out_of_turn import (
    LATE_ENDS,
    WAYS,
    WHENS,
    WHOLE,
    WITH_THE_ANSWER,
    First,
    OutOfTurn,
    Way,
    chunked,
    echo,
    refused,
    sized,
    speak,
)
from tests.support.running import kind, stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from parley.testing.exchange import Exchange
    from parley.testing.upstream import ScriptedUpstream

SOME_WAYS = ["a chunked answer", "half a status line", "half a body, the rest later", "401", "garbage", "100", "FIN"]
REST_S = 3.0  # Parley may wait before it reuses a connection, to see whether it stays quiet


async def take(client: httpx.AsyncClient) -> None:
    """Get the answer, or an error whose code names the upstream."""
    response = await client.post("/chat/complete", json={"message": "first"})
    assert response.json().get("text") == "first" or response.json()["code"].startswith("upstream_"), response.text


async def complete(client: httpx.AsyncClient) -> None:
    """Get the complete answer."""
    response = await client.post("/chat/complete", json={"message": "first"})
    assert (response.status_code, response.json()["text"]) == (200, "first")


async def leave(client: httpx.AsyncClient) -> None:
    """Leave in the middle of the answer."""
    async with client.stream("POST", "/chat", json={"message": "first"}) as response:
        async for line in response.aiter_lines():
            if "first" in line:
                break


async def run_out_of_time(client: httpx.AsyncClient) -> None:
    """Let the idle timeout cut the answer short."""
    response = await client.post("/chat/complete", json={"message": "first"})
    assert response.json()["code"] == "upstream_idle_timeout"


async def be_ready(client: httpx.AsyncClient) -> None:
    """Have Parley request the list of models."""
    assert (await client.get("/health/ready")).status_code == 200


_FIRST = sse(delta("first"))
DONE = First(chunked(WHOLE), complete)
FIRSTS = {
    "done, with a content-length": First(sized(WHOLE)[:-1], complete, end=b"\n"),
    "done, without [DONE]": First(chunked(sse(delta("first"), delta(finish_reason="stop"))), complete),
    "400": First(refused("400 Bad Request")[:-1], take, end=b"}"),
    "429": First(refused("429 Too Many Requests")[:-1], take, end=b"}"),
    "500": First(refused("500 Internal Server Error")[:-1], take, end=b"}"),
    "500 in chunks": First(chunked(b"{}").replace(b"200 OK", b"500 Error"), take),
    "an error in the answer": First(chunked(sse(delta("first"), ECHO)), take),
    "no completion": First(chunked(b"data: {\n\n"), take),
    "a client that left": First(chunked(_FIRST), leave, is_cut=True),
    "a deadline": First(chunked(_FIRST), run_out_of_time, is_cut=True),
    "readiness": First(chunked(b"{}"), be_ready),
}


async def ask(client: httpx.AsyncClient, path: str) -> None:
    """Ask, and check that the answer belongs to this request."""
    word = uuid.uuid4().hex
    request = {"message": f"{CANARY} {word}"}
    if path == "/health/ready":
        response = await client.get(path)
        assert response.json() == {"status": "ready", "reason": None}
    elif path == "/chat":
        chunks: list[Any] = await stream(client, request)
        assert [kind(chunk) for chunk in chunks] == ["start", "text", "done"]
        assert chunks[1].text == word
    else:
        response = await client.post(path, json=request)
        assert response.status_code == 200, response.text
        assert response.json()["text"] == word


@contextmanager
def noting(*case: object) -> Iterator[None]:
    """Add the case to the error, if one is raised."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {case}")
        raise


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_that_spoke_out_of_turn_is_not_used_again(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, way: str
) -> None:
    """The connection stays unused however long it is quiet afterwards."""
    others = [("1 s later", path) for path in ("/chat/complete", "/health/ready")]
    for when, path in [*((when, "/chat") for when in ("with its end", "right after", "20 ms later")), *others]:
        before = len(upstream.connections)
        script = OutOfTurn(upstream, DONE, WAYS[way], WHENS[when])
        with anyio.fail_after(60), noting(when, path):
            await (take if WHENS[when] == WITH_THE_ANSWER else complete)(client)
            await script.spoken.wait()
            await asyncio.sleep(REST_S)
            await ask(client, path)
            # Line ends that come with the answer's end are harmless, and a parser may skip them unseen.
            if WAYS[way].says.strip(b"\r\n") or WHENS[when] >= 0:
                assert len(upstream.connections) == before + 2


@pytest.mark.parametrize(
    "first", [pytest.param(name, marks=[pytest.mark.long] * (name == "a deadline")) for name in FIRSTS]
)
async def test_it_is_not_used_again_whatever_the_first_exchange_was(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, first: str
) -> None:
    """The first exchange may be an answer, an error, or unfinished; the next request may follow at once."""
    for way, when, rest_s in product(SOME_WAYS[:2], WHENS, (0, REST_S)):
        script = OutOfTurn(upstream, FIRSTS[first], WAYS[way], WHENS[when])
        with anyio.fail_after(60), noting(way, when, rest_s):
            await (take if WHENS[when] == WITH_THE_ANSWER else FIRSTS[first].ask)(client)
            script.left.set()
            await script.spoken.wait()
            await asyncio.sleep(rest_s)
            await ask(client, "/chat")
            assert upstream.exchanges[-1].connection is not script.spoke[0].connection
        if first == "readiness":
            await asyncio.sleep(6)  # Parley keeps the result of the check until then


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 1])
@pytest.mark.parametrize("late", LATE_ENDS)
async def test_an_end_that_comes_late_is_not_taken_for_the_next_answer(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, late: str, delay_s: float
) -> None:
    """The next request may come before or after the late end."""
    says, end = LATE_ENDS[late]
    first: list[Exchange] = []

    async def begin(exchange: Exchange) -> None:
        upstream.script = finish
        first.append(exchange)
        exchange.send_raw(says)

    async def finish(exchange: Exchange) -> None:
        upstream.script = end_late
        first[0].send_raw(end)
        await echo(exchange)

    async def end_late(exchange: Exchange) -> None:
        upstream.script = echo
        exchange.send_raw(says)
        await pause(exchange, delay_s)
        exchange.send_raw(end)

    upstream.script = begin
    with anyio.fail_after(60):
        await complete(client)
        await ask(client, "/chat")
        assert upstream.exchanges[0].connection is not upstream.exchanges[1].connection
        await complete(client)
        await asyncio.sleep(REST_S)
        await ask(client, "/chat")


@pytest.mark.parametrize("way", SOME_WAYS)
async def test_many_connections_that_spoke_out_of_turn_are_not_used_again(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, way: str
) -> None:
    """New answers are in progress while the connections speak out of turn."""
    all_came = asyncio.Event()

    async def together(exchange: Exchange) -> None:
        if len(upstream.exchanges) == 10:
            all_came.set()
        await all_came.wait()
        exchange.send_raw(DONE.says + DONE.end)

    upstream.script = together
    with anyio.fail_after(60):
        await asyncio.gather(*(complete(client) for _ in range(10)))
        first = list(upstream.exchanges)
        upstream.script = echo
        await asyncio.sleep(REST_S)
        speaking = (speak(exchange, WAYS[way]) for exchange in first)
        await asyncio.gather(*(ask(client, "/chat") for _ in range(5)), *speaking)
        await asyncio.sleep(REST_S)
        await asyncio.gather(*(ask(client, "/chat/complete") for _ in range(10)))
    spoke = {id(exchange.connection) for exchange in first}
    assert not spoke & {id(exchange.connection) for exchange in upstream.exchanges[-10:]}


@pytest.mark.parametrize("way", [*SOME_WAYS[:-1], "one byte"])
async def test_what_comes_just_before_the_next_request_is_not_its_answer(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, way: str
) -> None:
    """The bytes come in each turn of the event loop up to the one that sends the request."""
    for turns in range(200):
        script = OutOfTurn(upstream, DONE, Way(), 0)
        with anyio.fail_after(60), noting(turns):
            await complete(client)
            await script.spoken.wait()
            await asyncio.sleep(REST_S)
            has_spoken, _ = await asyncio.gather(speak(script.spoke[0], WAYS[way], turns), ask(client, "/chat"))
        if not has_spoken:
            break


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
async def test_a_quiet_connection_is_used_again(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str
) -> None:
    """A new connection for each request would cost more than the request."""
    for number in range(5):
        word = str(number)
        upstream.script = answer(word)
        response = await client.post(path, json={"message": word})
        assert word in response.text
        await asyncio.sleep(REST_S)
    assert len(upstream.connections) == 1
