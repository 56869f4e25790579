"""The main job over real sockets: a message in, chunks out, and the request that reaches the upstream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import httpx_sse
import msgspec

from parley.chat.errors import ErrorCode
from parley.chat.events import NO_USAGE, FinishReason, Usage, UsageSource
from parley.testing.upstream import answer, delta
from parley.wire.schema import DoneChunk, ErrorChunk, StartChunk, TextChunk
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.clock import JumpingLoop
from tests.support.running import BOTH, decode_chunk, problem, running, stream, with_tool
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange
    from parley.testing.factories import ChatRequestFactory
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

REQUEST = {"message": CANARY}
COUNTED = Usage(input_tokens=7, output_tokens=3, total_tokens=10, source=UsageSource.UPSTREAM)


@BOTH
async def test_an_answer_streams_as_start_texts_and_done(
    client: httpx.AsyncClient, agent: str | None, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The test compares every chunk of the stream, and the request's log line."""
    upstream.script = answer("Hello")
    start, *texts, done = await stream(client, REQUEST, headers={"X-Correlation-ID": "my.id-1"})

    assert start == StartChunk(seq=0, correlation_id="my.id-1", model="scripted-1")
    assert texts == [TextChunk(seq=1, text="Hello")]
    assert isinstance(done, DoneChunk)
    assert done == DoneChunk(
        seq=2, finish_reason=FinishReason.STOP, usage=with_tool(agent, COUNTED), timing=done.timing
    )
    assert done.timing.first_token_ms is not None
    assert 0 <= done.timing.first_token_ms <= done.timing.total_ms

    line, usage = await logs.line(), with_tool(agent, COUNTED)
    assert line.pop("total_ms") >= line.pop("first_token_ms") >= 0
    assert line.pop("bytes_out") > len("Hello")
    del line["timestamp"], line["logger"]
    assert line == {
        "event": "request",
        "level": "info",
        "correlation_id": "my.id-1",
        "trace_id": None,
        "method": "POST",
        "route": "/chat",
        "status": 200,
        "outcome": "completed",
        "error_code": None,
        "reason": None,
        "caller": None,
        "bytes_in": len(client.build_request("POST", "/chat", json=REQUEST).content),
        "queue_ms": 0,
        "model": "scripted-1",
        "is_fallback": False,
        "attempts": 1 if agent is None else 2,
        "upstream_status": None,
        "chunks": 3,
        "finish_reason": "stop",
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_input_tokens": None,
        "reasoning_tokens": None,
        "usage_source": "upstream",
    }


@BOTH
async def test_the_whole_answer_comes_as_one_json(client: httpx.AsyncClient, agent: str | None, logs: Logs) -> None:
    """`POST /chat/complete` takes the same request as `POST /chat`."""
    response = await client.post("/chat/complete", json=REQUEST)

    body = response.json()
    timing = body.pop("timing")
    assert 0 <= timing["first_token_ms"] <= timing["total_ms"]
    assert body == {
        "text": "Hello",
        "finish_reason": "stop",
        "usage": msgspec.to_builtins(with_tool(agent, COUNTED)),
        "model": "scripted-1",
        "correlation_id": response.headers["x-correlation-id"],
    }
    line = await logs.line()
    assert (line["route"], line["status"], line["outcome"]) == ("/chat/complete", 200, "completed")


async def test_the_stream_has_the_headers_that_keep_proxies_from_holding_it(client: httpx.AsyncClient) -> None:
    """A proxy that buffers would turn the stream into one late response."""
    response = await client.post("/chat", json=REQUEST)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert b"\r" not in response.content


async def test_the_upstream_gets_the_turns_in_order_and_the_limits(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """The request has system prompt, history, message, model, temperature and token limit, and asks for usage."""
    request: Any = {
        "message": "And of Spain?",
        "history": [
            {"role": "user", "content": "The capital of France?"},
            {"role": "assistant", "content": "Paris."},
        ],
    }
    async with running(make_settings(system_prompt="Be brief.", temperature=0.5)) as client:
        await stream(client, request)
        request["max_output_tokens"] = 5
        await stream(client, request)

    first, second = upstream.exchanges
    assert first.json == {
        "model": "scripted-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The capital of France?"},
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And of Spain?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 2000,
        "temperature": 0.5,
    }
    assert second.json["max_tokens"] == 5
    assert first.headers["authorization"] == f"Bearer {CANARY_KEY}"


async def test_any_request_that_the_factory_makes_is_answered(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, chat_request_factory: type[ChatRequestFactory]
) -> None:
    """The published factories make valid requests, and everything in them reaches the upstream."""
    for request in chat_request_factory.batch(5):
        response = await client.post(
            "/chat", content=msgspec.json.encode(request), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 200
        sent = upstream.exchanges[-1].json
        assert [turn["content"] for turn in sent["messages"]] == [
            *(turn.content for turn in request.history or ()),
            request.message,
        ]
        assert sent["max_tokens"] == request.max_output_tokens


@BOTH
async def test_a_text_arrives_before_the_upstream_has_sent_the_next(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The upstream sends its last text only after the client has seen the first."""
    gated = upstream.script = Gated()
    texts = []
    with anyio.fail_after(10):
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
            async for event in source.aiter_sse():
                chunk = decode_chunk(event.data)
                if isinstance(chunk, TextChunk):
                    texts.append(chunk.text)
                    gated.may_end.set()
    assert texts == ["first", "last"]


async def test_no_part_of_an_answer_waits_until_the_client_has_acknowledged_the_part_before(
    client: httpx.AsyncClient,
) -> None:
    """A delayed TCP acknowledgement takes up to 40 ms; the test's clock jumps ahead while nothing else happens."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    await client.get("/health/live")
    before_s = loop.ahead_s
    for _ in range(20):
        await client.get("/health/live")
    assert loop.ahead_s - before_s < 1


@BOTH
async def test_usage_that_the_upstream_does_not_give_is_an_estimate_never_zero(
    client: httpx.AsyncClient, agent: str | None, upstream: ScriptedUpstream
) -> None:
    """Each delta counts as a token; the input tokens are unknown."""
    upstream.script = answer("a", "b", "c", usage=None)
    done = (await stream(client, REQUEST))[-1]
    assert isinstance(done, DoneChunk)
    assert done.usage == with_tool(agent, Usage.estimate(3))


@BOTH
async def test_usage_that_the_upstream_gives_in_part_is_kept_as_it_is(
    client: httpx.AsyncClient, agent: str | None, upstream: ScriptedUpstream
) -> None:
    """Parley does not compute a total that the upstream did not report."""
    upstream.script = answer("a", usage={"prompt_tokens": 7, "completion_tokens": 0})
    usage = Usage(input_tokens=7, output_tokens=0, total_tokens=None, source=UsageSource.UPSTREAM)
    done = (await stream(client, REQUEST))[-1]
    assert isinstance(done, DoneChunk)
    assert done.usage == with_tool(agent, usage)


@BOTH
async def test_an_empty_answer_is_an_answer(
    client: httpx.AsyncClient, agent: str | None, upstream: ScriptedUpstream
) -> None:
    """The model may give a finish reason without any text."""
    upstream.script = answer(finish_reason="content_filter", usage=None)
    start, done = await stream(client, REQUEST)
    assert isinstance(start, StartChunk)
    assert isinstance(done, DoneChunk)
    assert (done.finish_reason, done.usage) == (FinishReason.CONTENT_FILTER, with_tool(agent, NO_USAGE))
    assert done.timing.first_token_ms is None


@BOTH
async def test_a_connection_serves_one_answer_after_the_other(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Parley reads an answer to its last byte, so that its connection can be used again."""
    for _ in range(3):
        await stream(client, REQUEST)
    assert len(upstream.exchanges) == 3
    assert len(upstream.connections) == 1


@BOTH
async def test_a_stream_that_ends_without_a_reason_is_truncated(
    client: httpx.AsyncClient, agent: str | None, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The client gets all text, then an error; openai-python would have reported the answer as done."""
    upstream.script = answer("Hello", finish_reason=None, usage=None)
    start, *texts, error = await stream(client, REQUEST)

    assert isinstance(start, StartChunk)
    assert texts == [TextChunk(seq=1, text="Hello")]
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.UPSTREAM_TRUNCATED
    assert error.error.retryable
    assert error.error.correlation_id == start.correlation_id
    assert error.usage == with_tool(agent, Usage.estimate(1))
    line = await logs.line()
    assert (line["status"], line["outcome"], line["error_code"]) == (200, "failed", "upstream_truncated")
    assert line["level"] == "warning"


@BOTH
async def test_a_broken_connection_costs_no_text_that_had_come(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The upstream resets the connection once Parley has passed its text on."""
    seen = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("first"))
        await seen.wait()
        exchange.abort()

    upstream.script = script
    chunks = []
    with anyio.fail_after(10):
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
            async for event in source.aiter_sse():
                chunks.append(decode_chunk(event.data))
                seen.set()
    _, text, error = chunks
    assert text == TextChunk(seq=1, text="first")
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.UPSTREAM_TRUNCATED


@BOTH
async def test_what_fails_before_the_first_text_is_an_http_error(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The upstream's 200 and its empty first chunk do not yet commit Parley to a 200."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        await exchange.events({"error": {"message": f"it echoes {CANARY} and {CANARY_KEY}", "code": 500}})
        await exchange.end()

    upstream.script = script
    response = await client.post("/chat", json=REQUEST)
    assert response.status_code == 502
    assert problem(response).code is ErrorCode.UPSTREAM_ERROR
