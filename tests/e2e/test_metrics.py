"""The metrics count exactly what happened, to the token."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from parley.testing.upstream import ScriptedUpstream, answer, delta, in_turn, respond
from tests.support.process import leading_to, parley

if TYPE_CHECKING:
    import httpx

    from parley.testing.exchange import Exchange

REQUEST = {"message": "hi"}

# Metrics that depend on timing: texts that arrive together are sent together.
MEASURED = re.compile(r".*_(sum|bucket|created)|parley_text_gap_seconds_count|parley_http_.*")


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the counts other than 0, by name and labels."""
    text = (await client.get("/metrics")).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        " ".join([sample.name, *map(str, sample.labels.values())]): sample.value
        for sample in samples
        if sample.value and sample.name.startswith("parley_") and not MEASURED.fullmatch(sample.name)
    }


async def http(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the HTTP counts that do not depend on timing, by name, method, path and status."""
    text = (await client.get("/metrics")).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    names = ("method", "path", "status_code")
    return {
        " ".join([sample.name, *(sample.labels[name] for name in names if name in sample.labels)]): sample.value
        for sample in samples
        if re.fullmatch(r"parley_http_.*_(total|count|progress)", sample.name)
    }


async def test_the_metrics_equal_what_was_done(upstream: ScriptedUpstream) -> None:
    """Some answers have usage (7 and 3 tokens), some do not; there are refusals, retries and a fallback."""
    key = "sk-canary-5Xq9-for-the-fake-upstream"
    variables = leading_to(upstream, PARLEY_API_KEYS=key, PARLEY_FALLBACK_MODEL="scripted-2", PARLEY_RETRIES="1")
    async with parley(**variables) as served, served.client() as client:
        client.headers["Authorization"] = f"Bearer {key}"
        for path in ("/chat", "/chat", "/chat/complete"):
            assert (await client.post(path, json=REQUEST)).status_code == 200
        upstream.script = answer("a", "b", finish_reason="length", usage=None)
        await client.post("/chat", json=REQUEST)
        upstream.script = answer("a", finish_reason=None, usage=None)
        await client.post("/chat", json=REQUEST)
        upstream.script = in_turn(respond(429, {}), answer("a"))
        await client.post("/chat", json=REQUEST)
        upstream.script = in_turn(respond(401, {}), answer("a"))
        await client.post("/chat", json=REQUEST)
        await client.post("/chat", json={"message": ""})
        await client.post("/chat", json=REQUEST, headers={"Authorization": "Bearer wrong"})
        await client.get("/nothing")
        await client.options("/chat")
        assert await counted(client) == {
            "parley_chats_total stop": 5,
            "parley_chats_total length": 1,
            "parley_chats_total upstream_truncated": 1,
            "parley_chats_total invalid_request": 1,
            "parley_chats_total unauthorized": 1,
            "parley_refusals_total invalid_request": 1,
            "parley_refusals_total wrong_key": 1,
            "parley_tokens_total input scripted-1 upstream": 4 * 7,
            "parley_tokens_total output scripted-1 upstream": 4 * 3,
            "parley_tokens_total output scripted-1 estimate": 2 + 1,
            "parley_tokens_total input scripted-2 upstream": 7,
            "parley_tokens_total output scripted-2 upstream": 3,
            "parley_upstream_responses_total scripted-1 200": 6,
            "parley_upstream_responses_total scripted-1 429": 1,
            "parley_upstream_responses_total scripted-1 401": 1,
            "parley_upstream_responses_total scripted-2 200": 1,
            "parley_retries_total scripted-1": 1,
            "parley_fallbacks_total": 1,
            f"parley_build_info {platform.python_version()} {version('parley')}": 1,
            "parley_queue_wait_seconds_count": 7,
            "parley_first_token_wait_seconds_count scripted-1": 6,
            "parley_first_token_wait_seconds_count scripted-2": 1,
            "parley_chat_duration_seconds_count": 9,
        }


async def test_http_is_counted_by_method_route_and_status(upstream: ScriptedUpstream) -> None:
    """Paths, methods and preflights that match no route have no metrics, because clients choose them."""
    variables = leading_to(upstream, PARLEY_CORS_ORIGINS="https://a.example")
    async with parley(**variables) as served, served.client() as client:
        for _ in range(2):
            await client.get("/health/live")
        await client.post("/chat", json=REQUEST)
        await client.post("/chat/complete", json=REQUEST)
        await client.post("/chat", json={"message": ""})
        upstream.script = respond(400, {})
        await client.post("/chat", json=REQUEST)
        await client.options("/chat")
        await client.options("/chat", headers={"Origin": "https://a.example"})
        await client.get("/chat")
        await client.request("BREW", "/chat")
        await client.get("/nothing")
        told = await http(client)
    once = (
        "POST /chat 200",
        "POST /chat/complete 200",
        "POST /chat 400",
        "POST /chat 502",
        "OPTIONS /chat 204",
    )
    requests = dict.fromkeys(once, 1.0) | {"GET /health/live 200": 2}
    in_progress = {"POST /chat", "POST /chat/complete", "OPTIONS /chat", "GET /health/live"}
    assert told == (
        {f"parley_http_requests_total {name}": number for name, number in requests.items()}
        | {f"parley_http_request_duration_seconds_count {name}": number for name, number in requests.items()}
        | {f"parley_http_requests_in_progress {name}": 0 for name in in_progress}
        | {"parley_http_requests_in_progress GET /metrics": 1}
    )


async def test_a_response_in_the_apps_place_counts_with_the_status_that_the_client_got(
    upstream: ScriptedUpstream,
) -> None:
    """The client never saw the response that the app would have sent."""
    async with parley(**leading_to(upstream)) as served:
        reader, writer = await asyncio.open_connection(*served.url.removeprefix("http://").split(":"))
        head = b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"no chunk\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        line = await served.logs.line()
        async with served.client() as client:
            told = await http(client)
    assert (line["status"], line["error_code"], line["outcome"]) == (400, "invalid_request", "failed")
    requests = [name for name in told if name.startswith("parley_http_requests_total")]
    assert requests == ["parley_http_requests_total POST /chat 400"]


@pytest.mark.long
async def test_any_worker_tells_what_all_have_counted(upstream: ScriptedUpstream) -> None:
    """A killed worker's finished chats still count; what it was doing does not."""

    async def endless(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("a"))
        await exchange.gone.wait()

    async with parley(**leading_to(upstream, PARLEY_WORKERS="2")) as served:
        await served.logs.line("Application startup complete.", number=2)
        for _ in range(20):
            async with served.client() as client:
                await client.post("/chat", json=REQUEST)
        for _ in range(5):
            async with served.client() as client:
                assert (await counted(client))["parley_chats_total stop"] == 20
        upstream.script = endless
        async with served.client() as client, client.stream("POST", "/chat", json=REQUEST) as response:
            texts = response.aiter_raw()  # held by name: the stream closes when this is collected
            await anext(texts)
            async with served.client() as other:
                assert (await counted(other))["parley_streams_in_flight"] == 1
            pids = {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", served.logs.getvalue())}
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await served.logs.line("Application startup complete.", number=4)
        async with served.client() as client:
            told = await counted(client)
        assert {(line["pid"], line["exit_code"]) for line in served.logs.lines("worker_died")} == {
            (p, -9) for p in pids
        }
        assert told["parley_worker_deaths_total"] == 2
        assert told["parley_chats_total stop"] == 20
        assert "parley_streams_in_flight" not in told
