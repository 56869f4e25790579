"""The connection to the upstream: certificates, proxies, and bytes that aiohttp alone would lose."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import anyio
import pytest
import trustme

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.run import Deadlines, Run
from parley.chat.watch import Untraced
from parley.providers.exchange import CompletionRequest, Exchange
from parley.providers.upstream import Upstream
from parley.settings import SecretText, Settings
from parley.telemetry.metrics import metrics
from parley.testing.faults import after, close, reset, say, sse
from parley.testing.upstream import ScriptedUpstream, answer, delta, in_turn, respond
from tests.support.canaries import CANARY
from tests.support.running import problem, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from parley.testing.exchange import Exchange as Asked
    from parley.testing.exchange import Script
    from tests.support.logs import Logs

REQUEST = {"message": CANARY}


@pytest.mark.parametrize("then", [reset, close])
async def test_what_came_before_the_connection_broke_is_not_lost(upstream: ScriptedUpstream, then: Script) -> None:
    """The text is kept however late it is read: a slow client may delay the reading."""
    upstream.script = after(("a", "b", "c"), then)
    provider = Upstream(
        base_url=upstream.url,
        api_key=None,
        model_name="scripted-1",
        instructions=None,
        temperature=None,
        connect_timeout_s=5,
        watch=metrics(),
        tracer=Untraced(),
    )
    run = Run(Settings(), asyncio.get_running_loop().time() + 60, 100)
    request = CompletionRequest(messages=[], max_tokens=100)
    attempt = provider.attempt(request, call=0, is_fallback=False)
    async with provider:
        exchange = Exchange(provider, request, attempt, Deadlines(run), Untraced())
        await exchange.open()
        assert exchange.content is not None
        with anyio.fail_after(10):
            while exchange.content.exception() is None:  # noqa: ASYNC110  # aiohttp has no event for it
                await asyncio.sleep(0)
        assert await exchange.next() == "abc"
        with pytest.raises(ChatError) as caught:
            await exchange.next()
        exchange.close(caught.value)
    assert caught.value.code is ErrorCode.UPSTREAM_TRUNCATED
    assert attempt.deltas == 3


async def test_an_upstream_behind_tls_must_show_a_certificate_that_is_trusted(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authorities come from httpx's list, or from SSL_CERT_FILE."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with ScriptedUpstream(tls=tls) as upstream:
        settings = make_settings(openai_base_url=upstream.url)
        async with running(settings) as client:
            error = problem(await client.post("/chat", json=REQUEST))
        assert (error.code, upstream.exchanges) == (ErrorCode.UPSTREAM_UNREACHABLE, [])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with running(settings) as client:
            assert (await client.post("/chat/complete", json=REQUEST)).json()["text"] == "Hello"


@pytest.mark.parametrize(("bypass", "path"), [("", "http://127.0.0.1:9/v1/chat/completions"), ("*", None)])
async def test_the_environments_proxy_is_used(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    bypass: str,
    path: str | None,
) -> None:
    """NO_PROXY can exclude the address."""
    monkeypatch.setenv("HTTP_PROXY", upstream.url.removesuffix("/v1"))
    monkeypatch.setenv("NO_PROXY", bypass)
    async with running(make_settings(openai_base_url="http://127.0.0.1:9/v1")) as client:  # no server listens there
        response = await client.post("/chat", json=REQUEST)
    assert response.status_code == (200 if path else 502)
    assert [exchange.path for exchange in upstream.exchanges] == ([path] if path else [])


@pytest.mark.parametrize(
    ("host", "parameters"),
    [
        ("api.openai.com", {"max_completion_tokens", "stream_options"}),
        ("somebody.openai.azure.com", {"max_completion_tokens", "stream_options"}),
        ("api.mistral.ai", {"max_tokens"}),
        ("somebody.example", {"max_tokens", "stream_options"}),
    ],
)
async def test_a_host_that_is_known_is_asked_right_the_first_time(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    parameters: set[str],
) -> None:
    """The scripted upstream stands in for the host by acting as the proxy on the way to it."""
    monkeypatch.setenv("HTTP_PROXY", upstream.url.removesuffix("/v1"))
    async with running(make_settings(openai_base_url=f"http://{host}/v1")) as client:
        assert (await client.post("/chat/complete", json=REQUEST)).json()["text"] == "Hello"
    (asked,) = [exchange.json for exchange in upstream.exchanges]
    assert asked.keys() - {"model", "messages", "stream", "temperature"} == parameters


async def test_a_known_host_that_refuses_the_other_name_of_the_limit_gets_the_usual_one(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old versions of Azure's API refuse the other name."""
    monkeypatch.setenv("HTTP_PROXY", upstream.url.removesuffix("/v1"))
    refusal = {"error": {"message": "Unrecognized request argument supplied: max_completion_tokens"}}
    upstream.script = in_turn(respond(400, refusal), answer("Hello"))
    async with running(make_settings(openai_base_url="http://somebody.openai.azure.com/v1")) as client:
        assert (await client.post("/chat/complete", json=REQUEST)).json()["text"] == "Hello"
    asked = [{name for name in exchange.json if name.startswith("max_")} for exchange in upstream.exchanges]
    assert asked == [{"max_completion_tokens"}, {"max_tokens"}]


async def test_an_upstream_gets_what_it_wants_besides(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Extra fields and headers are sent, but cannot override Parley's own fields; secrets are hidden in the log."""
    secret = "a secret of the gateway"  # noqa: S105  # not a password
    settings = make_settings(
        reasoning_effort="low",
        extra_body='{"chat_template_kwargs": {"thinking": false}, "stream": false, "max_tokens": 1, "model": "x"}',
        extra_headers=SecretText(f'{{"x-gateway": "{secret}", "authorization": "Basic abc"}}'),
        log_upstream_text=True,
    )
    upstream.script = in_turn(answer("Hello"), respond(400, {"error": {"message": f"Wrong: {secret}!"}}))
    async with running(settings, logs) as client:
        await client.post("/chat", json=REQUEST)
        await client.post("/chat", json=REQUEST)
        said = (await logs.line("upstream_refused"))["upstream_text"]
    assert "Wrong: ***!" in said
    asked, headers = upstream.exchanges[0].json, upstream.exchanges[0].headers
    assert (asked["reasoning_effort"], asked["chat_template_kwargs"]) == ("low", {"thinking": False})
    assert (asked["stream"], asked["max_tokens"], asked["model"]) == (True, 2000, "scripted-1")
    assert (headers["x-gateway"], headers["authorization"]) == (secret, "Basic abc")


@pytest.mark.parametrize(
    ("script", "event", "word"),
    [
        (answer("Hello", finish_reason="weary"), "upstream_unknown_ending", "weary"),
        (answer("Hello", finish_reason="42 reasons"), "upstream_unknown_ending", None),
        (say(sse(delta("Hello")) + b"data: {\n\n"), "upstream_undecodable", "no field"),
    ],
)
async def test_what_nobody_expects_of_an_upstream_leaves_a_line(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    logs: Logs,
    script: Script,
    event: str,
    word: str | None,
) -> None:
    """The line has the finish reason if that is a single word, and never any text."""
    upstream.script = script
    async with running(make_settings(), logs) as client:
        await client.post("/chat", json=REQUEST)
        line = await logs.line(event)
    assert (line["level"], line.get("word", "no field")) == ("warning", word)
    assert "upstream_text" not in line


async def test_requests_at_once_learn_together_what_an_upstream_does_not_take(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """A request that was sent before another request learnt of the parameter does not fail."""
    together = asyncio.Barrier(4)

    async def script(exchange: Asked) -> None:
        if len(upstream.exchanges) <= 4:
            await together.wait()
        for name in ("max_tokens", "temperature"):
            if name in exchange.json:
                error = {"message": f"Unsupported parameter: '{name}'", "param": name}
                await respond(400, {"error": error})(exchange)
                return
        await answer("Hello")(exchange)

    upstream.script = script
    async with running(make_settings(temperature=0.5)) as client:
        answers = await asyncio.gather(*(client.post("/chat/complete", json=REQUEST) for _ in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        await client.post("/chat/complete", json=REQUEST)
    assert "max_completion_tokens" in upstream.exchanges[-1].json
    assert len(upstream.exchanges) <= 4 * 3 + 1


@pytest.mark.parametrize(("is_elsewhere", "sent"), [(True, None), (False, "a secret of the gateway")])
async def test_the_fallback_gets_no_headers_that_are_meant_for_another_api(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, *, is_elsewhere: bool, sent: str | None
) -> None:
    """The headers may contain a secret."""
    upstream.script = respond(500, {})
    async with ScriptedUpstream() as other:
        settings = make_settings(
            extra_headers=SecretText('{"x-gateway": "a secret of the gateway"}'),
            fallback_base_url=other.url if is_elsewhere else None,
            fallback_model="second-1",
        )
        async with running(settings) as client:
            await client.post("/chat", json=REQUEST)
        asked = (other if is_elsewhere else upstream).exchanges[-1]
    assert asked.json["model"] == "second-1"
    assert asked.headers.get("x-gateway") == sent
