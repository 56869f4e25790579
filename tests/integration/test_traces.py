"""Traces: a collector learns who called whom, the outcome and the duration, but no text of callers or upstreams."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import httpx_sse
import pytest

from parley.testing.faults import after, close, reason_then_hang
from parley.testing.upstream import answer, hang, in_turn, respond
from tests.support.canaries import CANARIES, CANARY
from tests.support.collector import Collector
from tests.support.faults import ECHO
from tests.support.running import running, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from parley.settings import Settings
    from parley.testing.exchange import Script
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]

REQUEST = {"message": CANARY}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLERS_SPAN_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLERS_SPAN_ID}-01"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Use the machine's clock: a thread sends the spans, and a jumping clock would not wait for it."""
    return "asyncio"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """Run the collector."""
    async with Collector() as collector:
        yield collector


@pytest.fixture
def traced(make_settings: MakeSettings, collector: Collector) -> MakeSettings:
    """Return a function that makes settings with the collector; it has all spans once Parley has stopped."""
    return lambda **changes: make_settings(otel_exporter_otlp_endpoint=collector.endpoint, **changes)


async def test_a_request_can_be_followed_from_the_caller_to_the_upstream(
    traced: MakeSettings, upstream: ScriptedUpstream, collector: Collector, logs: Logs
) -> None:
    """Headers, spans and log lines share one trace ID and one correlation ID."""
    upstream.script = in_turn(respond(429, ECHO), respond(503, ECHO), answer("Hello"))
    headers = {"Traceparent": TRACEPARENT, "X-Correlation-ID": "my.id-1"}
    async with running(traced(retries=2, temperature=0.5), logs) as client:
        await stream(client, {**REQUEST, "max_output_tokens": 5}, headers=headers)

    [request] = collector.spans("server")
    call, *attempts = collector.spans("client")
    assert {span.trace_id for span in (request, call, *attempts)} == {TRACE_ID}
    assert request.parent_id == CALLERS_SPAN_ID
    assert call.parent_id == request.span_id
    for span, exchange in zip(attempts, upstream.exchanges, strict=True):
        assert span.parent_id == call.span_id
        assert exchange.headers["traceparent"] == f"00-{TRACE_ID}-{span.span_id}-01"
        assert exchange.headers["x-correlation-id"] == "my.id-1"
    lines = logs.lines("upstream_refused") + logs.lines("request")
    assert [(line["trace_id"], line["correlation_id"]) for line in lines] == [(TRACE_ID, "my.id-1")] * 3

    assert (request.name, request.is_error) == ("POST /chat", False)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/chat",
        "http.response.status_code": 200,
        "parley.correlation_id": "my.id-1",
        "parley.outcome": "completed",
    }
    assert (call.name, call.is_error) == ("chat scripted-1", False)
    assert 0 < call.attributes.pop("gen_ai.response.time_to_first_chunk") < 10
    port = int(upstream.url.rpartition(":")[2].removesuffix("/v1"))
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "scripted-1",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "server.address": "127.0.0.1",
        "server.port": port,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
    }
    asked = {"http.request.method": "POST", "server.address": "127.0.0.1", "server.port": port}
    assert [(span.name, span.is_error, span.attributes) for span in attempts] == [
        ("POST", True, {**asked, "http.response.status_code": 429, "error.type": "upstream_rate_limited"}),
        (
            "POST",
            True,
            {
                **asked,
                "http.request.resend_count": 1,
                "http.response.status_code": 503,
                "error.type": "upstream_error",
            },
        ),
        ("POST", False, {**asked, "http.request.resend_count": 2, "http.response.status_code": 200}),
    ]
    assert request.resource["service.name"] == "parley"


async def test_a_request_without_a_trace_begins_one(traced: MakeSettings, collector: Collector, logs: Logs) -> None:
    """A request with an invalid `traceparent` begins its own trace, too."""
    async with running(traced(), logs) as client:
        for headers in ({}, {b"Traceparent": CANARY.encode()}, {b"Traceparent": b"\xff\\x"}):
            await client.post("/chat/complete", json=REQUEST, headers=headers)
    requests = collector.spans("server")
    assert [span.parent_id for span in requests] == ["", "", ""]
    assert len({span.trace_id for span in requests}) == 3
    assert {line["trace_id"] for line in logs.lines("request")} == {span.trace_id for span in requests}


async def test_each_call_of_a_model_has_a_span_with_the_error_of_its_last_attempt(
    traced: MakeSettings, upstream: ScriptedUpstream, collector: Collector
) -> None:
    """The first model with its retry and the fallback have spans; the request's span is not an error."""
    upstream.script = in_turn(respond(429, ECHO), respond(500, ECHO), answer("Hello"))
    async with running(traced(retries=1, fallback_model="scripted-2")) as client:
        await stream(client, REQUEST)
    assert [(span.name, span.attributes.get("error.type")) for span in collector.spans("client")] == [
        ("chat scripted-1", "upstream_error"),
        ("POST", "upstream_rate_limited"),
        ("POST", "upstream_error"),
        ("chat scripted-2", None),
        ("POST", None),
    ]
    assert not collector.spans("server")[0].is_error


async def test_a_call_whose_client_leaves_while_a_retry_waits_has_a_span(
    traced: MakeSettings, upstream: ScriptedUpstream, collector: Collector, logs: Logs
) -> None:
    """The attempt before the wait has its own span, with its error."""
    upstream.script = respond(429, ECHO, retry_after="4")
    async with running(traced(retries=1), logs) as client, anyio.create_task_group() as leaving:
        leaving.start_soon(partial(client.post, "/chat", json=REQUEST))
        await logs.line("upstream_refused")
        leaving.cancel_scope.cancel()
    assert [(span.name, span.attributes.get("error.type")) for span in collector.spans("client")] == [
        ("chat scripted-1", None),
        ("POST", "upstream_rate_limited"),
    ]


@pytest.mark.parametrize(
    ("text", "then", "changes", "code"),
    [
        ("", hang, {"first_token_timeout_s": 0.1}, "upstream_first_token_timeout"),
        ("a", close, {}, "upstream_truncated"),
        ("a", hang, {"idle_timeout_s": 0.1}, "upstream_idle_timeout"),
    ],
)
async def test_an_answer_that_fails_is_an_error_of_all_spans(
    traced: MakeSettings,
    upstream: ScriptedUpstream,
    collector: Collector,
    text: str,
    then: Script,
    changes: Any,
    code: str,
) -> None:
    """The spans have the error code, even if the response's status was already sent as 200."""
    upstream.script = after(text, then)
    async with running(traced(**changes)) as client:
        response = await client.post("/chat", json=REQUEST)
    [request], [call, attempt] = collector.spans("server"), collector.spans("client")
    for span in (request, call, attempt):
        assert (span.attributes["error.type"], span.is_error) == (code, True)
    assert request.attributes["http.response.status_code"] == response.status_code
    assert request.attributes["parley.outcome"] == "failed"
    assert attempt.attributes["http.response.status_code"] == 200
    assert ("gen_ai.response.time_to_first_chunk" in call.attributes) == bool(text)
    assert "gen_ai.usage.output_tokens" not in call.attributes


async def test_what_fails_after_the_finish_reason_is_no_error(
    traced: MakeSettings, upstream: ScriptedUpstream, collector: Collector
) -> None:
    """The answer is complete."""
    upstream.script = after("a", reason_then_hang)
    async with running(traced()) as client:
        await stream(client, REQUEST)
    call, attempt = collector.spans("client")
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert not call.is_error
    assert not attempt.is_error


async def test_a_client_that_leaves_ends_all_spans(
    traced: MakeSettings, upstream: ScriptedUpstream, collector: Collector, logs: Logs
) -> None:
    """None of the spans is an error."""
    upstream.script = after("a", hang)
    async with running(traced(), logs) as client:
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
            await anext(aiter(source.aiter_sse()))
        await logs.line()
    [request], [call, attempt] = collector.spans("server"), collector.spans("client")
    assert request.attributes["parley.outcome"] == "client_disconnected"
    assert [span.is_error for span in (request, call, attempt)] == [False] * 3
    assert "gen_ai.response.finish_reasons" not in call.attributes


async def test_what_a_caller_chooses_is_in_no_span(
    traced: MakeSettings, upstream: ScriptedUpstream, collector: Collector
) -> None:
    """Spans contain no path, query, header or upstream text; the upstream gets no trace headers of the caller."""
    upstream.script = in_turn(answer(CANARY), respond(500, ECHO), answer("Hello"))
    headers = {
        "Traceparent": TRACEPARENT,
        "Tracestate": f"caller={CANARY}",
        "Baggage": f"caller={CANARY}",
        "Host": CANARY,
        "User-Agent": CANARY,
        "X-Correlation-ID": f"{CANARY}!",
        "X-Forwarded-For": CANARY,
    }
    async with running(traced()) as client:
        for _ in range(2):
            await client.post(f"/chat?{CANARY}", json=REQUEST, headers=headers)
        await client.post("/chat/complete", json=REQUEST, headers=headers)
        await client.get(f"/{CANARY}", headers=headers)
        await client.put("/chat", headers=headers)
        await client.request(CANARY, "/chat", headers=headers)
    assert [(span.name, span.attributes["http.request.method"]) for span in collector.spans("server")] == [
        ("POST /chat", "POST"),
        ("POST /chat", "POST"),
        ("POST /chat/complete", "POST"),
        ("GET", "GET"),
        ("PUT", "PUT"),
        ("HTTP", "_OTHER"),
    ]
    sent = b"".join(exchange.body for exchange in collector.exchanges)
    assert not any(canary.encode() in sent for canary in CANARIES)
    for exchange in upstream.exchanges:
        assert not exchange.headers.keys() & {"tracestate", "baggage"}


async def test_probes_leave_no_span(traced: MakeSettings, collector: Collector) -> None:
    """Otherwise they would drown out the other spans."""
    async with running(traced()) as client:
        for path in ("/health/live", "/health/ready", "/metrics"):
            await client.get(path)
    assert collector.exchanges == []


async def test_without_a_collector_nothing_is_traced(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Parley does not pass the caller's trace on, but does pass the correlation ID on."""
    async with running(make_settings(), logs) as client:
        await stream(client, REQUEST, headers={"Traceparent": TRACEPARENT, "X-Correlation-ID": "my.id-1"})
    assert "traceparent" not in upstream.exchanges[0].headers
    assert upstream.exchanges[0].headers["x-correlation-id"] == "my.id-1"
    assert logs.lines("request")[0]["trace_id"] is None


async def test_without_the_extra_parley_serves_and_says_that_it_does_not_trace(
    traced: MakeSettings, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable may have been set for all programs in a cluster."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # makes Python raise ImportError
    monkeypatch.delitem(sys.modules, "parley.telemetry.traces", raising=False)
    async with running(traced(), logs) as client:
        await stream(client, REQUEST)
    assert "parley[otel]" in (await logs.line("no_traces"))["remedy"]


async def test_spans_that_the_collector_refuses_are_counted_as_lost(
    traced: MakeSettings, collector: Collector, logs: Logs
) -> None:
    """The collector's error text is not logged."""
    collector.script = respond(400, ECHO)
    async with running(traced(), logs) as client:
        await stream(client, REQUEST)
    assert (await logs.line("spans_lost"))["spans"] == 3
    assert logs.lines("library_message") == []
