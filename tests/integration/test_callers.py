"""Callers: API keys, quotas, and how Parley tells callers apart."""

from __future__ import annotations

import hashlib
import socket
from functools import partial
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest

from parley.settings import Secret
from parley.testing.upstream import USAGE, answer, hang, in_turn, respond
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.running import problem, running, stream
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]

REQUEST = {"message": CANARY}
OTHER_KEY = f"{CANARY_KEY}-the-next"


async def broken(exchange: Exchange) -> None:
    """Close the connection instead of answering."""
    exchange.close()


def bearer(key: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def guarded(make_settings: MakeSettings, logs: Logs) -> AsyncIterator[httpx.AsyncClient]:
    """Run a Parley that requires a key and accepts two."""
    async with running(make_settings(api_keys=Secret(f"{CANARY_KEY},{OTHER_KEY}")), logs) as client:
        yield client


@pytest.mark.parametrize("key", [CANARY_KEY, OTHER_KEY])
async def test_each_of_the_keys_opens(guarded: httpx.AsyncClient, logs: Logs, key: str) -> None:
    """With two keys, one can replace the other; the log identifies the key by its hash."""
    *_, done = await stream(guarded, REQUEST, headers=bearer(key))
    assert done.__struct_config__.tag == "done"
    assert (await logs.line())["caller"] == hashlib.sha256(key.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "no_key"),
        ({"Authorization": ""}, "no_key"),
        ({"Authorization": CANARY_KEY}, "no_key"),
        ({"Authorization": f"Basic {CANARY_KEY}"}, "no_key"),
        ({"Authorization": "Bearer"}, "no_key"),
        (bearer(CANARY_KEY[:-1]), "wrong_key"),
        (bearer(f"{CANARY_KEY},{OTHER_KEY}"), "wrong_key"),
        (bearer("é" * 40), "wrong_key"),
    ],
)
@pytest.mark.parametrize("path", ["/chat", "/chat/complete", "/info", "/metrics"])
async def test_without_one_of_the_keys_nobody_passes(
    guarded: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    logs: Logs,
    path: str,
    headers: dict[str, str],
    reason: str,
) -> None:
    """The request is refused before its body is read; the log gives the reason."""
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    method = "GET" if path in {"/info", "/metrics"} else "POST"
    response = await guarded.request(method, path, content=b"{", headers=encoded)
    error = problem(response)
    assert (response.status_code, error.code, error.retryable) == (401, "unauthorized", False)
    assert response.headers["www-authenticate"] == "Bearer"
    line = await logs.line()
    assert (line["error_code"], line["reason"], line["caller"]) == ("unauthorized", reason, None)
    assert upstream.exchanges == []


async def test_the_metrics_may_have_a_key_of_their_own(make_settings: MakeSettings, logs: Logs) -> None:
    """Each key opens only its own part; failed attempts to read the metrics are logged."""
    keys = {"metrics_key": Secret(OTHER_KEY)}
    async with running(make_settings(api_keys=Secret(CANARY_KEY), **keys)) as client:
        assert (await client.get("/metrics", headers=bearer(OTHER_KEY))).status_code == 200
        assert problem(await client.get("/metrics", headers=bearer(CANARY_KEY))).code == "unauthorized"
        assert problem(await client.post("/chat", json=REQUEST, headers=bearer(OTHER_KEY))).code == "unauthorized"
    async with running(make_settings(**keys, log_level="info"), logs) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await logs.line())["reason"] == "no_key"
        await stream(client, REQUEST)


async def test_probes_and_the_contract_need_no_key(guarded: httpx.AsyncClient) -> None:
    """Orchestrators have no key, and the contract is not secret."""
    for path in ("/health/live", "/health/ready", "/schema", "/schema/openapi.json"):
        assert (await guarded.get(path)).status_code == 200


async def test_a_caller_over_its_quota_is_told_when_to_come_again(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Other callers are not affected."""
    keys = Secret(f"{CANARY_KEY},{OTHER_KEY}")
    async with running(make_settings(api_keys=keys, requests_per_minute=1), logs) as client:
        await stream(client, REQUEST, headers=bearer(CANARY_KEY))
        response = await client.post("/chat", json=REQUEST, headers=bearer(CANARY_KEY))
        error = problem(response)
        assert (response.status_code, error.code, error.retryable) == (429, "rate_limited", True)
        assert 58 <= int(response.headers["retry-after"]) <= 60
        assert error.retry_after_s == int(response.headers["retry-after"])
        assert (await logs.line(number=2))["reason"] == "requests_per_minute"
        await stream(client, REQUEST, headers=bearer(OTHER_KEY))
    assert len(upstream.exchanges) == 2


async def test_without_keys_an_address_is_a_caller(make_settings: MakeSettings, logs: Logs) -> None:
    """A trusted proxy may forward the address; from anyone else, the header would bypass the quota."""
    elsewhere = {"X-Forwarded-For": "192.0.2.1"}
    async with running(make_settings(requests_per_minute=1), logs) as client:
        await stream(client, REQUEST)
        assert problem(await client.post("/chat", json=REQUEST, headers=elsewhere)).code == "rate_limited"
    async with running(make_settings(requests_per_minute=1, trusted_proxies="127.0.0.1"), logs) as client:
        await stream(client, REQUEST)
        await stream(client, REQUEST, headers=elsewhere)
        assert problem(await client.post("/chat", json=REQUEST, headers=elsewhere)).code == "rate_limited"


@pytest.mark.parametrize(
    ("first", "second", "is_another"),
    [
        ("192.0.2.1", "192.0.2.2", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", False),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", True),
        ("unknown", "unknown", False),
    ],
)
async def test_a_caller_of_ipv6_is_a_network_of_64_bits(
    make_settings: MakeSettings, first: str, second: str, *, is_another: bool
) -> None:
    """A caller can choose any address in such a network; an IPv4-mapped address counts as IPv4."""
    async with running(make_settings(requests_per_minute=1, trusted_proxies="127.0.0.1"), None) as client:
        statuses = [
            (await client.post("/chat", json=REQUEST, headers={"X-Forwarded-For": address})).status_code
            for address in (first, second)
        ]
    assert statuses == [200, 200 if is_another else 429]


async def test_a_caller_with_enough_answers_at_once_is_refused_another(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The caller can ask again as soon as one of them has ended."""
    gated = upstream.script = Gated()
    async with running(make_settings(max_streams_per_caller=1), logs) as client:
        async with client.stream("POST", "/chat", json=REQUEST) as first:
            refused = problem(await client.post("/chat", json=REQUEST))
            assert (refused.code, refused.retry_after_s) == ("rate_limited", 1)
            gated.may_end.set()
            await first.aread()
        await stream(client, REQUEST)


async def test_what_every_attempt_has_cost_is_spent(make_settings: MakeSettings, upstream: ScriptedUpstream) -> None:
    """An attempt that reported usage and failed before the first text counts, too."""

    async def broken(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events({"choices": [], "usage": USAGE})
        exchange.close()

    upstream.script = in_turn(broken, answer("a"))
    async with running(make_settings(tokens_per_minute=10, retries=1)) as client:
        assert (await stream(client, REQUEST))[-1].__struct_config__.tag == "done"
        refused = problem(await client.post("/chat", json=REQUEST))
    assert refused.retry_after_s == 120  # 20 tokens are spent at 10 per minute, and the next request needs all 10


async def test_a_budget_that_is_spent_is_told(make_settings: MakeSettings, logs: Logs) -> None:
    """The scripted answer costs 10 tokens by the upstream's count."""
    async with running(make_settings(tokens_per_minute=10), logs) as client:
        await stream(client, REQUEST)
        assert problem(await client.post("/chat", json=REQUEST)).code == "rate_limited"
        assert (await logs.line(number=2))["reason"] == "tokens_per_minute"


async def test_a_caller_that_leaves_before_the_answer_begins_has_used_its_request(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Otherwise a caller that never waits could send the upstream any number of requests."""
    upstream.script = hang
    async with running(make_settings(requests_per_minute=3), logs) as client:
        for number in range(1, 4):
            async with anyio.create_task_group() as group:
                group.start_soon(partial(client.post, "/chat", json=REQUEST))
                await upstream.next_exchange()
                group.cancel_scope.cancel()
            assert (await logs.line(number=number))["outcome"] == "client_disconnected"
        for _ in range(9):
            assert problem(await client.post("/chat", json=REQUEST)).code == "rate_limited"
    assert len(upstream.exchanges) == 3


@pytest.mark.parametrize("script", [respond(429, {}), respond(500, {}), respond(401, {}), broken])
async def test_a_request_that_an_upstream_fails_counts_once_however_often_it_is_tried(
    make_settings: MakeSettings, upstream: ScriptedUpstream, script: Script
) -> None:
    """The request reached the upstream, or may have."""
    upstream.script = script
    async with running(make_settings(requests_per_minute=2, retries=2)) as client:
        codes = [problem(await client.post("/chat", json=REQUEST)).code for _ in range(3)]
    assert "rate_limited" not in codes[:2]
    assert codes[2] == "rate_limited"


async def test_a_request_that_reaches_no_upstream_does_not_count(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """A refused connection does not count, even after retries; a fallback that is reached does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = "http://{}:{}/v1".format(*listener.getsockname())
    settings = make_settings(requests_per_minute=1, retries=1, openai_base_url=nobody)
    async with running(settings) as client:
        for _ in range(3):
            assert problem(await client.post("/chat", json=REQUEST)).code == "upstream_unreachable"
    fallback = {"fallback_base_url": upstream.url, "fallback_model": "scripted-2"}
    async with running(msgspec.structs.replace(settings, **fallback)) as client:
        await stream(client, REQUEST)
        assert problem(await client.post("/chat", json=REQUEST)).code == "rate_limited"


async def test_a_request_that_gets_no_turn_does_not_count(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """Parley never sent the request to the upstream."""
    gated = upstream.script = Gated()
    settings = make_settings(requests_per_minute=2, max_streams=1, max_queue=0)
    async with running(settings) as client:
        async with client.stream("POST", "/chat", json=REQUEST) as first:
            for _ in range(3):
                assert problem(await client.post("/chat", json=REQUEST)).code == "overloaded"
            gated.may_end.set()
            await first.aread()
        await stream(client, REQUEST)
        assert problem(await client.post("/chat", json=REQUEST)).code == "rate_limited"


async def test_a_callers_quota_is_of_both_operations_together(make_settings: MakeSettings) -> None:
    """Another caller has its own quota."""
    settings = make_settings(api_keys=Secret(f"{CANARY_KEY},{OTHER_KEY}"), requests_per_minute=2)
    async with running(settings) as client:
        statuses = [
            (await client.post(path, json=REQUEST, headers=bearer(key))).status_code
            for key in (CANARY_KEY, OTHER_KEY)
            for path in ("/chat", "/chat/complete", "/chat/complete", "/chat")
        ]
    assert statuses == [200, 200, 429, 429] * 2
