"""Upstream failures, and what the caller and the operator learn of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import anyio
import httpx_sse
import pytest
from msgspec import UNSET

from parley.chat.errors import EXPLANATIONS, ErrorCode
from parley.chat.events import FinishReason, Usage
from parley.testing.faults import after, ping, say, sse
from parley.testing.upstream import delta, hang, respond
from parley.wire.schema import DoneChunk, ErrorChunk, StartChunk, TextChunk
from tests.support.canaries import CANARY
from tests.support.faults import ECHO
from tests.support.running import decode_chunk, problem, running, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

REQUEST = {"message": CANARY}
PATHS = ["/chat", "/chat/complete"]


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ("7", 7),
        ("1", 1),
        ("3600", 3600),
        ("0", None),
        ("-1", None),
        ("3601", None),
        ("86400", None),
        ("soon", None),
        ("²", None),
        ("", None),
    ],
)
async def test_a_sane_retry_after_is_passed_on(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, given: str, passed_on: int | None
) -> None:
    """The value is in the header and in the body; a value that no client should follow is left out."""
    upstream.script = respond(429, ECHO, retry_after=given)
    response = await client.post("/chat", json=REQUEST)
    assert problem(response).retry_after_s == passed_on
    assert response.headers.get("retry-after") == (None if passed_on is None else str(passed_on))


@pytest.mark.parametrize("path", PATHS)
async def test_an_upstream_that_is_not_there_is_unreachable(
    make_settings: Callable[..., Settings], logs: Logs, path: str
) -> None:
    """No server listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with running(make_settings(openai_base_url=f"http://127.0.0.1:{port}/v1"), logs) as client:
        response = await client.post(path, json=REQUEST)
        assert response.status_code == 502
        assert problem(response).code is ErrorCode.UPSTREAM_UNREACHABLE
    assert (await logs.line())["reason"] is None


async def test_the_connection_has_a_deadline(make_settings: Callable[..., Settings], logs: Logs) -> None:
    """A server listens, but its queue is full, so that Linux leaves the handshake unanswered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003  # the parameter is positional-only
            waiting.connect_ex(address)
        settings = make_settings(openai_base_url=f"http://127.0.0.1:{address[1]}/v1", connect_timeout_s=0.3)
        async with running(settings, logs) as client:
            response = await client.post("/chat", json=REQUEST)
    assert response.status_code == 502
    assert problem(response).code is ErrorCode.UPSTREAM_UNREACHABLE
    line = await logs.line()
    assert (line["reason"], line["total_ms"] >= 300) == ("connect_timeout", True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("script", [hang, after((), hang), after((), ping)])
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
    """Bytes without text do not extend the deadline, and Parley closes the upstream's connection."""
    upstream.script = script
    async with running(make_settings(**changes), logs) as client:
        with anyio.fail_after(10):
            response = await client.post(path, json=REQUEST)
            assert response.status_code == 504
            assert problem(response).code is code
            for exchange in upstream.exchanges:  # none, if a slow machine had not sent the request yet
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
    """The stream ends with the error, and Parley closes the upstream's connection."""
    upstream.script = after(("a",), hang)
    async with running(make_settings(**changes), logs) as client:
        with anyio.fail_after(10):
            start, text, error = await stream(client, {**REQUEST, **request_changes})
            await upstream.exchanges[0].gone.wait()
    assert isinstance(start, StartChunk)
    assert text == TextChunk(seq=1, text="a")
    assert isinstance(error, ErrorChunk)
    assert error.error.code is code
    assert error.usage == Usage.estimate(1)
    assert (await logs.line())["error_code"] == code


async def test_a_client_that_leaves_a_stream_stops_the_model(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The upstream's connection is closed within a second; the log gives the outcome and the usage."""
    upstream.script = after(("a",), hang)
    async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
        async for event in source.aiter_sse():
            if isinstance(decode_chunk(event.data), TextChunk):
                break
    with anyio.fail_after(1):
        await upstream.exchanges[0].gone.wait()
    line = await logs.line()
    assert (line["outcome"], line["status"], line["level"]) == ("client_disconnected", 200, "info")
    assert (line["model"], line["chunks"], line["output_tokens"]) == ("scripted-1", 2, 1)
    assert line["error_code"] is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("script", [hang, after((), hang)])
async def test_a_client_that_leaves_before_the_first_text_stops_the_model(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, path: str, script: Script
) -> None:
    """Litestar alone would let the request run to its end."""
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
    """The client sends fewer bytes than its Content-Length says."""
    url = client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    writer.close()
    assert (await logs.line())["outcome"] == "client_disconnected"
    assert upstream.exchanges == []
    assert logs.lines("unexpected_error") == []


async def speaks_no_http(exchange: Exchange) -> None:
    """Send bytes that are not HTTP."""
    exchange.writer.write(b"220 mail.example ESMTP\r\n")
    exchange.close()


async def test_what_an_upstream_does_wrong_is_told_in_words_of_its_own(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """All of these are `upstream_error`, but each has its own detail for the operator."""
    usual = EXPLANATIONS[ErrorCode.UPSTREAM_ERROR].detail
    details = []
    for script in (
        respond(404, {}),
        respond(422, {}),
        speaks_no_http,
        say(b"<html></html>", "text/html"),
        say(sse({"choices": 5})),
        say(sse(delta(finish_reason="tool_calls"))),
    ):
        upstream.script = script
        error = problem(await client.post("/chat", json=REQUEST))
        assert error.code is ErrorCode.UPSTREAM_ERROR
        details.append(error.detail)
    assert len({*details} - {usual}) == len(details)


async def test_an_error_that_comes_in_pieces_is_read_whole(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The code may be in the last piece. An invalid request ID is not logged."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(400, "application/json", x_request_id="no id")
        for piece in (b'{"error": {"message": "', b"x" * 1000, b'", "code": "context_length_exceeded"}}'):
            await exchange.write(piece)
        await exchange.end()

    upstream.script = script
    assert problem(await client.post("/chat", json=REQUEST)).code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert (await logs.line("upstream_refused"))["upstream_request_id"] is None


async def test_fields_that_say_nothing_are_passed_over(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    """Some servers send null fields with every event."""
    nothing = {"error": None, "usage": None}
    upstream.script = say(
        sse(
            {"choices": [], **nothing},
            {"choices": [{"index": 0}], **nothing},
            {"choices": [{"index": 0, "delta": None, "finish_reason": None}], **nothing},
            delta("a", **nothing),
            {"choices": [{"index": 0, "finish_reason": "stop"}], **nothing},
            "[DONE]",
        )
    )
    start, text, done = await stream(client, REQUEST)
    assert isinstance(start, StartChunk)
    assert text == TextChunk(seq=1, text="a")
    assert isinstance(done, DoneChunk)
    assert done.finish_reason is FinishReason.STOP


async def test_an_answer_that_has_an_end_does_not_wait_for_the_end_of_its_connection(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Nothing follows `[DONE]`."""
    upstream.script = after((), lambda exchange: exchange.events(delta("a", finish_reason="stop"), "[DONE]"))
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert isinstance((await stream(client, REQUEST))[-1], DoneChunk)
    assert loop.time() - before < 1


@pytest.mark.parametrize(
    ("code", "error", "partial"),
    [("server_error", "upstream_error", "Hello, you"), ("content_filter", "content_filtered", None)],
)
async def test_a_whole_answer_that_fails_late_keeps_its_text_unless_the_upstream_refuses_it(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, code: str, error: str, partial: str | None
) -> None:
    """A stream has sent the text already, so its error does not repeat it."""
    upstream.script = after(["Hello, ", "you"], lambda exchange: exchange.events({"error": {"code": code}}))
    body = (await client.post("/chat/complete", json=REQUEST)).json()
    assert (body["code"], body.get("partial")) == (error, partial)
    *_, last = await stream(client, REQUEST)
    assert isinstance(last, ErrorChunk)
    assert (last.error.code, last.error.partial) == (error, UNSET)
