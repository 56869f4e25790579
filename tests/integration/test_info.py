"""What `GET /info` tells a client: the model, the limits in force, and the version."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from parley.settings import Secret
from parley.testing.upstream import answer, respond
from tests.support import contract
from tests.support.canaries import CANARY_KEY
from tests.support.running import BOTH, running, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]


async def info(client: httpx.AsyncClient, **options: Any) -> Any:
    """Return what Parley says of itself, after checks that hold for every such response."""
    response = await client.get("/info", **options)
    assert response.status_code == 200, response.text
    assert response.headers["x-correlation-id"]
    assert response.headers["cache-control"] == "no-store"
    contract.check("Info", response.json())
    return response.json()


async def test_it_tells_the_defaults(client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs) -> None:
    """No upstream is asked."""
    assert await info(client) == {
        "model": "scripted-1",
        "fallback_model": None,
        "limits": {
            "max_output_tokens": 2000,
            "timeout_s": 30.0,
            "message_characters": 32_000,
            "history_turns": 200,
            "body_bytes": 1_048_576,
            "requests_per_minute": None,
            "open_requests": None,
            "tokens_per_minute": None,
        },
        "version": version("parley"),
    }
    line = await logs.line()
    assert (line["route"], line["status"], line["level"], line["outcome"]) == ("/info", 200, "info", "completed")
    assert (upstream.exchanges, upstream.models_requests) == ([], 0)


async def test_it_tells_what_the_operator_set(make_settings: MakeSettings) -> None:
    """The quotas are those of each caller, except the tokens."""
    settings = make_settings(
        fallback_model="scripted-2",
        max_output_tokens=100,
        request_timeout_s=7.5,
        requests_per_minute=60,
        max_streams_per_caller=4,
        tokens_per_minute=10_000,
    )
    async with running(settings) as client:
        told = await info(client)
    assert (told["model"], told["fallback_model"]) == ("scripted-1", "scripted-2")
    assert [told["limits"][name] for name in ("max_output_tokens", "timeout_s")] == [100, 7.5]
    assert [told["limits"][name] for name in ("requests_per_minute", "open_requests")] == [60, 4]
    assert told["limits"]["tokens_per_minute"] == 10_000


@BOTH
async def test_it_names_the_models_that_answers_name(make_settings: MakeSettings, upstream: ScriptedUpstream) -> None:
    """The first model answers; when it fails, the fallback does."""
    async with running(make_settings(fallback_model="scripted-2")) as client:
        told = await info(client)
        upstream.script = answer("Hello")
        assert (await client.post("/chat/complete", json={"message": "Hi"})).json()["model"] == told["model"]

        async def fails(exchange: Any) -> None:
            await (respond(500, {}) if exchange.json["model"] == told["model"] else answer("Hello"))(exchange)

        upstream.script = upstream.tool_script = fails
        assert (await client.post("/chat/complete", json={"message": "Hi"})).json()["model"] == told["fallback_model"]


@pytest.mark.parametrize("field", ["max_output_tokens", "timeout_s"])
async def test_a_request_at_the_limit_is_accepted_and_one_above_is_refused(
    client: httpx.AsyncClient, field: str
) -> None:
    """The limits that a client reads are those that Parley holds it to."""
    limit = (await info(client))["limits"][field]
    statuses = [
        (await client.post("/chat/complete", json={"message": "Hi", field: value})).status_code
        for value in (limit, limit + 1)
    ]
    assert statuses == [200, 400]


async def test_it_counts_towards_no_quota(make_settings: MakeSettings) -> None:
    """The chat is the only request that this caller may send in this minute."""
    async with running(make_settings(requests_per_minute=1)) as client:
        for _ in range(3):
            await info(client)
        await stream(client, {"message": "Hi"})
        assert (await client.post("/chat", json={"message": "Hi"})).status_code == 429
        await info(client)


async def test_it_needs_a_key_if_chats_do(make_settings: MakeSettings, logs: Logs) -> None:
    """Another test has the requests without a key, or with a wrong one."""
    async with running(make_settings(api_keys=Secret(CANARY_KEY)), logs) as client:
        await info(client, headers={"Authorization": f"Bearer {CANARY_KEY}"})
        assert (await logs.line())["caller"]
        assert (await client.get("/info")).status_code == 401


async def test_it_is_served_while_the_upstream_is_down(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    """A client can read its limits before it decides to wait."""
    upstream.models_script = respond(401, {})
    assert (await client.get("/health/ready")).status_code == 503
    assert (await info(client))["model"] == "scripted-1"
