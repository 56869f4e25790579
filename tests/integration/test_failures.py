"""What can go wrong with the upstream, and what the caller and the operator learn of it."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import anyio
import httpx_sse
import pytest

from parley.chat.errors import ErrorCode
from parley.chat.events import Usage, UsageSource
from parley.web.schema import ErrorChunk, StartChunk, TextChunk
from tests.support.running import CANARY, CANARY_KEY, decode_chunk, problem, running, stream
from tests.support.upstream import Exchange, Script, delta, hang, respond

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from tests.support.logs import Logs
    from tests.support.upstream import ScriptedUpstream

REQUEST = {"message": CANARY}
PATHS = ["/chat", "/chat/complete"]

# Upstreams are known to quote the prompt and the key.
ECHO = {"error": {"message": f"{CANARY} {CANARY_KEY}", "type": CANARY, "param": CANARY, "code": CANARY}}


def say(body: bytes, content_type: str = "text/event-stream") -> Script:
    """Answer 200 with these bytes."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type=content_type)
        await exchange.write(body)
        await exchange.end()

    return script


async def reset(exchange: Exchange) -> None:
    """Break the connection instead of answering."""
    exchange.abort()


async def headers_then_reset(exchange: Exchange) -> None:
    """Break the connection before the first event."""
    await exchange.head()
    exchange.abort()


FAILURES: dict[str, tuple[Script, int, str, bool, int | None]] = {
    "400": (respond(400, ECHO), 502, "upstream_error", False, 400),
    "401": (respond(401, ECHO), 502, "upstream_auth", False, 401),
    "403": (respond(403, ECHO), 502, "upstream_auth", False, 403),
    "404": (respond(404, ECHO), 502, "upstream_error", False, 404),
    "408": (respond(408, ECHO), 502, "upstream_error", True, 408),
    "409": (respond(409, ECHO), 502, "upstream_error", True, 409),
    "429": (respond(429, ECHO), 503, "upstream_rate_limited", True, 429),
    "500": (respond(500, ECHO), 502, "upstream_error", True, 500),
    "503": (respond(503, ECHO), 502, "upstream_error", True, 503),
    "500 without JSON": (respond(500, CANARY), 502, "upstream_error", True, 500),
    "context length, as OpenAI says it": (
        respond(400, {"error": {"message": CANARY, "code": "context_length_exceeded"}}),
        400,
        "context_length_exceeded",
        False,
        400,
    ),
    "context length, as llama.cpp says it": (
        respond(400, {"error": {"message": CANARY, "code": 400, "type": "exceed_context_size_error"}}),
        400,
        "context_length_exceeded",
        False,
        400,
    ),
    "context length, as vLLM says it": (
        respond(400, {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}}),
        400,
        "context_length_exceeded",
        False,
        400,
    ),
    "a web page": (say(b"<html>" + CANARY.encode() + b"</html>", "text/html"), 502, "upstream_error", True, None),
    "a whole answer": (say(b'{"choices": []}', "application/json"), 502, "upstream_error", True, None),
    "nothing": (say(b""), 502, "upstream_error", True, None),
    "malformed JSON": (say(b'data: {"choices": [' + CANARY.encode() + b"\n\n"), 502, "upstream_error", True, None),
    "invalid UTF-8": (
        say(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'),
        502,
        "upstream_error",
        True,
        None,
    ),
    "another shape": (say(b'data: {"choices": 5}\n\n'), 502, "upstream_error", True, None),
    "an error in the stream": (
        say(b'data: {"error": {"message": "' + CANARY.encode() + b'"}}\n\n'),
        502,
        "upstream_error",
        True,
        None,
    ),
    "an endless line": (say(b"data: " + b"x" * (2 << 20)), 502, "upstream_error", True, None),
    "only [DONE]": (say(b"data: [DONE]\n\n"), 502, "upstream_error", True, None),
    "a role, then the end": (
        say(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\ndata: [DONE]\n\n'),
        502,
        "upstream_truncated",
        True,
        None,
    ),
    "a reason that nobody knows": (
        say(b'data: {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}\n\n'),
        502,
        "upstream_error",
        False,
        None,
    ),
    "a reset": (reset, 502, "upstream_unreachable", True, None),
    "headers, then a reset": (headers_then_reset, 502, "upstream_truncated", True, None),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("script", "status", "code", "retryable", "upstream_status"), FAILURES.values(), ids=FAILURES.keys()
)
async def test_a_failure_before_the_first_text_is_an_http_error(
    client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    logs: Logs,
    path: str,
    script: Script,
    status: int,
    code: str,
    upstream_status: int | None,
    *,
    retryable: bool,
) -> None:
    """Its name is Parley's, its words too; the upstream is asked once, and its own status is for the operator."""
    upstream.script = script
    response = await client.post(path, json=REQUEST)

    assert response.status_code == status
    error = problem(response)
    assert (error.code, error.retryable) == (code, retryable)
    assert "retry-after" not in response.headers
    assert len(upstream.exchanges) == 1
    line = await logs.line()
    assert (line["outcome"], line["status"], line["error_code"]) == ("failed", status, code)
    assert line["upstream_status"] == upstream_status
    assert line["level"] == ("info" if status < 500 else "warning")
    assert logs.lines("unexpected_error") == []


@pytest.mark.parametrize(
    ("given", "passed_on"), [("7", 7), ("0", None), ("-1", None), ("86400", None), ("soon", None), ("²", None)]
)
async def test_a_sane_retry_after_is_passed_on(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, given: str, passed_on: int | None
) -> None:
    """In the header and in the body; one that no client should keep is left out."""
    upstream.script = respond(429, ECHO, retry_after=given)
    response = await client.post("/chat", json=REQUEST)
    assert problem(response).retry_after_s == passed_on
    assert response.headers.get("retry-after") == (None if passed_on is None else str(passed_on))


@pytest.mark.parametrize("path", PATHS)
async def test_an_upstream_that_is_not_there_is_unreachable(
    make_settings: Callable[..., Settings], logs: Logs, path: str
) -> None:
    """Nothing listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with running(make_settings(openai_base_url=f"http://127.0.0.1:{port}/v1"), logs) as client:
        response = await client.post(path, json=REQUEST)
        assert response.status_code == 502
        assert problem(response).code is ErrorCode.UPSTREAM_UNREACHABLE


async def test_an_error_in_mid_stream_ends_it_with_what_it_cost(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """All the text, then the error; the estimate counts what was seen."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("a"), delta("b"), ECHO, delta("c"))
        await exchange.end()

    upstream.script = script
    start, *texts, error = await stream(client, REQUEST)
    assert isinstance(start, StartChunk)
    assert texts == [TextChunk(seq=1, text="a"), TextChunk(seq=2, text="b")]
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.UPSTREAM_ERROR
    assert error.usage == Usage(output_tokens=2, source=UsageSource.ESTIMATE)
    line = await logs.line()
    assert (line["outcome"], line["error_code"], line["chunks"]) == ("failed", "upstream_error", 4)
    assert (line["output_tokens"], line["usage_source"]) == (2, "estimate")


async def test_a_failure_after_the_finish_reason_takes_nothing_from_the_answer(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The answer was whole; only the usage is lost."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("a"), delta(finish_reason="stop"))
        exchange.abort()

    upstream.script = script
    chunks = await stream(client, REQUEST)
    assert [chunk.__struct_config__.tag for chunk in chunks] == ["start", "text", "done"]


async def send_headers(exchange: Exchange) -> None:
    """Begin, and say nothing."""
    await exchange.head()
    await exchange.gone.wait()


async def send_pings(exchange: Exchange) -> None:
    """Send comments, one whenever the last has been taken, and no text."""
    await exchange.head()
    while not exchange.gone.is_set():
        await exchange.write(b": ping\n\n")
        await asyncio.sleep(0)


async def send_one(exchange: Exchange) -> None:
    """Send one text, then comments only."""
    await exchange.head()
    await exchange.events(delta("a"))
    await exchange.gone.wait()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("script", [hang, send_headers, send_pings])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"first_token_timeout_s": 0.5}, ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT),
        ({"request_timeout_s": 0.5}, ErrorCode.REQUEST_TIMEOUT),
    ],
)
async def test_the_first_text_has_a_deadline(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    logs: Logs,
    path: str,
    script: Script,
    changes: dict[str, Any],
    code: ErrorCode,
) -> None:
    """Bytes that are no text do not move it, and the upstream's connection is closed."""
    upstream.script = script
    async with running(make_settings(**changes), logs) as client:
        with anyio.fail_after(10):
            response = await client.post(path, json=REQUEST)
            assert response.status_code == 504
            assert problem(response).code is code
            for exchange in upstream.exchanges:  # none, where the machine is so slow that it had not begun
                await exchange.gone.wait()


@pytest.mark.parametrize(
    ("changes", "request_changes", "code"),
    [
        ({"idle_timeout_s": 0.1}, {}, ErrorCode.UPSTREAM_IDLE_TIMEOUT),
        ({"request_timeout_s": 1}, {}, ErrorCode.REQUEST_TIMEOUT),
        ({}, {"timeout_s": 1}, ErrorCode.REQUEST_TIMEOUT),
    ],
)
async def test_the_next_text_has_a_deadline(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    logs: Logs,
    changes: dict[str, Any],
    request_changes: dict[str, Any],
    code: ErrorCode,
) -> None:
    """The stream ends with the error, and the upstream's connection is closed."""
    upstream.script = send_one
    async with running(make_settings(**changes), logs) as client:
        with anyio.fail_after(10):
            start, text, error = await stream(client, {**REQUEST, **request_changes})
            await upstream.exchanges[0].gone.wait()
    assert isinstance(start, StartChunk)
    assert text == TextChunk(seq=1, text="a")
    assert isinstance(error, ErrorChunk)
    assert error.error.code is code
    assert error.usage == Usage(output_tokens=1, source=UsageSource.ESTIMATE)
    assert (await logs.line())["error_code"] == code


async def test_a_client_that_leaves_a_stream_stops_the_model(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The upstream's connection is closed within a second, and the log says why, and what it cost."""
    upstream.script = send_one
    async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
        async for event in source.aiter_sse():
            if isinstance(decode_chunk(event.data), TextChunk):
                break
    with anyio.fail_after(1):
        await upstream.exchanges[0].gone.wait()
    line = await logs.line()
    assert (line["outcome"], line["status"], line["level"]) == ("client_disconnected", 200, "info")
    assert (line["model"], line["chunks"], line["output_tokens"]) == ("scripted-1", 2, 1)
    assert "error_code" not in line


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("script", [hang, send_headers])
async def test_a_client_that_leaves_before_the_first_text_stops_the_model(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, path: str, script: Script
) -> None:
    """Litestar alone would let it go on to its end."""
    upstream.script = script
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: client.post(path, json=REQUEST))
        exchange = await upstream.next_exchange()
        group.cancel_scope.cancel()
    with anyio.fail_after(1):
        await exchange.gone.wait()
    line = await logs.line()
    assert (line["outcome"], line["status"], line["level"]) == ("client_disconnected", 499, "info")
    assert logs.lines("unexpected_error") == []


async def test_a_client_that_leaves_in_its_body_costs_nothing(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Less was sent than announced."""
    url = client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    writer.close()
    assert (await logs.line())["outcome"] == "client_disconnected"
    assert upstream.exchanges == []
    assert logs.lines("unexpected_error") == []
