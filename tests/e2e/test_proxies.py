"""Parley behind the documented proxy configurations: what clients receive, and what upstreams are asked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from parley.chat.errors import ErrorCode
from parley.testing.upstream import answer, delta, hang, respond
from tests.support.process import leading_to, parley
from tests.support.proxies import PROXIES, before_one, ways
from tests.support.running import kind, problem, read_chunks
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from parley.testing.exchange import Exchange, Script
    from parley.testing.upstream import ScriptedUpstream

pytestmark = pytest.mark.long

# A busy machine disturbs single measurements, so they are repeated; a proxy's own delay is in all of them.
ROUNDS = 3

PACE_S = 0.02
TEXTS = 150
SILENCE_S = 16.0  # the timeout of Envoy's routes is 15 s by default
REST_S = 5.0
CONNECTIONS, REQUESTS = 50, 4
NEVER_S = "60"


async def text(response: httpx.Response, number: int = 1) -> None:
    """Read until the text of this number has come."""
    async for line in response.aiter_lines():
        number -= line == "event: text"
        if not number:
            return


def kinds(response: httpx.Response) -> list[str]:
    """Return the types of a stream's chunks."""
    return [kind(chunk) for chunk in read_chunks(response.content)]


async def measure(take: Callable[[], Awaitable[dict[str, float]]], most: Callable[[dict[str, float]], float]) -> None:
    """Measure each way, and repeat this until all figures are small enough."""
    for _ in range(ROUNDS):
        figures = await take()
        print({way: round(figure, 4) for way, figure in figures.items()})  # noqa: T201  # shown by pytest -rP
        slow = [way for way, figure in figures.items() if figure > most(figures)]
        if not slow:
            return
    pytest.fail(f"too slow each time: {slow}")


async def test_each_text_comes_when_the_model_makes_it(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The 99th percentile of the gaps is at most 30 ms above that of the direct connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(TEXTS):
            await exchange.events(delta("word "))
            await asyncio.sleep(PACE_S)
        await exchange.events(delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    async def gap_s(way: str) -> float:
        async with it.asking(way) as response:
            times = [time.perf_counter() async for line in response.aiter_lines() if line == "event: text"]
        assert len(times) > TEXTS / 2, "on a busy machine texts may come together, but not many"
        gaps = sorted(later - earlier for earlier, later in pairwise(times))
        return gaps[int(len(gaps) * 0.99)]

    async def gaps_s() -> dict[str, float]:
        return {way: gap for way, (gap,) in (await it.each(gap_s)).items()}

    upstream.script = script
    async with before_one(tmp_path, upstream) as it:
        await measure(gaps_s, lambda gaps: gaps["direct"] + 0.03)


async def test_no_silence_cuts_a_stream(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The silence is before the first text, or between two texts; heartbeats come all the time."""

    async def script(exchange: Exchange) -> None:
        if exchange.message == "early":
            await exchange.head()
            await exchange.events(delta("a"))
        await asyncio.sleep(SILENCE_S)  # this time is under test; the proxies' clocks cannot be changed
        await answer("b")(exchange) if exchange.message == "late" else await end(exchange)

    async def end(exchange: Exchange) -> None:
        await exchange.events(delta("b"), delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    async def ask(way: str) -> list[Any]:
        early, late = await asyncio.gather(it.ask(way, "early"), it.ask(way, "late"))
        return [kinds(early), kinds(late), *[response.content.count(b": ping\n") >= 3 for response in (early, late)]]

    upstream.script = script
    async with before_one(tmp_path, upstream, PARLEY_IDLE_TIMEOUT_S="20") as it:
        results = await it.each(ask)
    whole = [["start", "text", "text", "done"], ["start", "text", "done"], True, True]
    assert results == {way: [whole] for way in it.clients}


async def test_a_client_that_leaves_stops_the_model(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Parley stops it within a second, without a heartbeat: between texts, in a silence, and before the headers."""
    scripts: dict[str, Script] = {"paced": Gated(pace_s=PACE_S), "silent": Gated(), "late": hang}
    asked: dict[str, asyncio.Future[Exchange]] = {}

    async def script(exchange: Exchange) -> None:
        asked[exchange.message].set_result(exchange)
        await scripts[exchange.message.split()[0]](exchange)

    async def leave(way: str, message: str) -> float:
        is_asked = asked[message] = asyncio.get_running_loop().create_future()

        async def ask() -> None:
            async with it.asking(way, message) as response:
                await text(response, 10 if message.startswith("paced") else 1)

        asking = asyncio.create_task(ask())
        exchange = await is_asked
        if message.startswith("late"):
            asking.cancel()
        await asyncio.wait({asking})
        left = time.perf_counter()
        with anyio.move_on_after(10):
            await exchange.gone.wait()
        return time.perf_counter() - left

    async def stop_s(way: str) -> list[float]:
        return await asyncio.gather(*[leave(way, f"{moment} {way}") for moment in scripts])

    async def stops_s() -> dict[str, float]:
        results = await it.each(stop_s)
        return {
            f"{way}, {moment}": stop
            for way, (stops,) in results.items()
            for moment, stop in zip(scripts, stops, strict=True)
        }

    upstream.script = script
    names = ("HEARTBEAT", "HOLD_HEADERS", "FIRST_TOKEN_TIMEOUT", "IDLE_TIMEOUT", "REQUEST_TIMEOUT")
    async with before_one(tmp_path, upstream, **{f"PARLEY_{name}_S": NEVER_S for name in names}) as it:
        await measure(stops_s, lambda _: 1.0)


async def test_a_failure_upstream_reaches_the_client_as_it_is(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The failure is a chunk in mid-stream, and a status before that; no proxy retries, or answers by itself."""

    async def cut(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("a"))
        await asyncio.sleep(PACE_S)
        exchange.abort()

    scripts: dict[str, Script] = {"cut": cut, "refuse": respond(503, {})}

    async def script(exchange: Exchange) -> None:
        await scripts[exchange.message](exchange)

    async def ask(way: str) -> list[Any]:
        broken, refused = await it.ask(way, "cut"), await it.ask(way, "refuse")
        return [kinds(broken), refused.status_code, problem(refused).code]

    upstream.script = script
    async with before_one(tmp_path, upstream) as it:
        results = await it.each(ask)
    assert results == {way: [[["start", "text", "error"], 502, ErrorCode.UPSTREAM_ERROR]] for way in it.clients}


async def test_the_quotas_are_those_of_the_callers_not_of_the_proxy(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Each proxy tells Parley whose request it is."""
    gated = upstream.script = Gated()

    async def ask_twice(way: str) -> list[int]:
        address = f"127.0.1.{sorted(it.clients).index(way)}"
        transport = httpx.AsyncHTTPTransport(local_address=address)
        url = it.clients[way].base_url
        async with httpx.AsyncClient(base_url=url, transport=transport, timeout=30) as other, it.asking(way) as first:
            it.asked += 1
            async with other.stream("POST", "/chat", json={"message": "hi"}) as second:
                again = await other.post("/chat", json={"message": "hi"})
                return [first.status_code, second.status_code, again.status_code]

    proxies = {"PARLEY_TRUSTED_PROXIES": "127.0.0.1", "PARLEY_MAX_STREAMS_PER_CALLER": "1"}
    async with before_one(tmp_path, upstream, **proxies) as it:
        for way in it.clients:
            assert await ask_twice(way) == [200, 200, 429], way
        gated.may_end.set()


async def test_requests_that_come_as_often_as_connections_used_to_close_all_succeed(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """There are 200 per proxy, about 5.0 s apart per connection: no connection may close while a request arrives."""
    rests_s = {way: iter([REST_S + number / 2000 for number in range(-50, 50, 2)]) for way in PROXIES}

    async def keep_asking(way: str) -> list[int]:
        rest_s = next(rests_s[way])
        statuses = []
        for number in range(REQUESTS):
            await asyncio.sleep(rest_s if number else 0)  # this time is under test
            statuses.append((await it.ask(way, path="/chat/complete")).status_code)
        return statuses

    async with before_one(tmp_path, upstream, PARLEY_MAX_STREAMS="500") as it:
        await it.clients.pop("direct").aclose()
        results = await it.each(keep_asking, CONNECTIONS)
    counted = {
        way: Counter(status for statuses in all_of_it for status in statuses) for way, all_of_it in results.items()
    }
    assert counted == {way: {200: CONNECTIONS * REQUESTS} for way in it.clients}


async def test_a_parley_that_is_killed_never_looks_like_an_end(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Its streams break, and its other requests fail and are not retried; those of the other Parley continue."""
    gated = Gated()
    ready = asyncio.Barrier(2 * 4 * len(PROXIES) + 1)

    async def script(exchange: Exchange) -> None:
        if exchange.message == "late":
            await ready.wait()
            await gated.may_end.wait()
        await gated(exchange)

    async def ask(message: str, way: str) -> str:
        try:
            async with it.asking(way, message) as response:
                lines = response.aiter_lines()
                if message == "early":
                    while await anext(lines) != "event: text":
                        pass
                    await ready.wait()
                names = [line.removeprefix("event: ") async for line in lines if line.startswith("event: ")]
        except (httpx.RemoteProtocolError, httpx.ReadError):
            return "broken"
        return names[-1] if response.is_success else f"{response.status_code}"

    async def kill() -> None:
        await ready.wait()
        first.process.kill()
        await first.process.wait()
        gated.may_end.set()

    upstream.script = script
    variables = leading_to(upstream, PARLEY_RETRIES="0", PARLEY_HOLD_HEADERS_S=NEVER_S)
    async with parley(**variables) as first, parley(**variables) as second, ways(tmp_path, first.url, second.url) as it:
        early, late, _ = await asyncio.gather(
            it.each(partial(ask, "early"), 4), it.each(partial(ask, "late"), 4), kill()
        )
    for way in PROXIES:
        assert {*early[way]} <= {"broken", "done"}, way
        assert {*late[way]} <= {"502", "503", "done"}, way
        assert {*early[way], *late[way]} > {"done"}, "of 8, each Parley has had some"
    assert len(upstream.exchanges) == it.asked
