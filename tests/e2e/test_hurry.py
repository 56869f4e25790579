"""`parley` has to end before its clients are done: what it tells each of them."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
import httpx_sse
import msgspec
import pytest

from parley.chat.errors import ErrorCode
from parley.testing.upstream import ScriptedUpstream, delta
from parley.wire.schema import ErrorChunk, ErrorResponse
from tests.support.process import leading_to, parley
from tests.support.running import decode_chunk, problem, sending

if TYPE_CHECKING:
    import httpx

    from parley.testing.exchange import Exchange
    from tests.support.process import Parley

CHAT = b"POST %b HTTP/1.%d\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Slow:
    """A script that answers according to the message, and does not end."""

    def __init__(self) -> None:
        self.is_blocked = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Send a text, no text, or more text than any client reads."""
        message = exchange.json["messages"][-1]["content"]
        await exchange.head()
        if message == "begin":
            await exchange.events(delta("a"))
        while message == "flood" and not self.is_blocked.is_set():
            try:
                await asyncio.wait_for(exchange.events(*[delta("word ")] * 100), 0.5)
            except TimeoutError:
                self.is_blocked.set()
        await exchange.gone.wait()


def chat(path: str, message: str, minor: int = 1) -> bytes:
    """Return the bytes of a request."""
    body = json.dumps({"message": message}).encode()
    return CHAT % (path.encode(), minor, len(body)) + body


def refusal(received: bytes) -> ErrorResponse:
    """Return the error in the only response."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close" in head.lower()
    return msgspec.json.decode(body, type=ErrorResponse)


async def end(served: Parley, *, is_hurried: bool) -> None:
    """Stop Parley by a second Ctrl-C, or by SIGTERM, after which the drain timeout passes."""
    if is_hurried:
        await served.interrupt_twice()
    else:
        served.process.send_signal(signal.SIGTERM)
    assert await served.wait() == 0


@pytest.mark.parametrize("is_hurried", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_who_waits_is_told_that_parley_ends(upstream: ScriptedUpstream, *, is_hurried: bool) -> None:
    """A client that waits for headers or a turn, or still sends its request, gets an error; a stream ends with one."""
    upstream.script = Slow()
    variables = leading_to(upstream, PARLEY_MAX_STREAMS="3", PARLEY_READ_TIMEOUT_S="60", PARLEY_HOLD_HEADERS_S="60")
    if not is_hurried:
        variables["PARLEY_DRAIN_TIMEOUT_S"] = "0.5"
    responses: list[httpx.Response] = []
    async with parley(**variables) as served, served.client() as client, anyio.create_task_group() as group:

        async def ask(path: str) -> None:
            responses.append(await client.post(path, json={"message": "wait"}))

        async with (
            sending(client, chat("/chat", "half")[:-3]) as (half, _),
            httpx_sse.aconnect_sse(client, "POST", "/chat", json={"message": "begin"}) as begun,
        ):
            events = begun.aiter_sse()
            await anext(events)
            for path in ("/chat", "/chat/complete", "/chat"):  # one of them waits for its turn
                group.start_soon(ask, path)
            while len(upstream.exchanges) < 3:
                await upstream.next_exchange()
            await client.get("/health/live")  # all requests have arrived by then
            ending = asyncio.create_task(end(served, is_hurried=is_hurried))
            chunks = [decode_chunk(event.data) async for event in events]
            refused = refusal(await half.read())
            await ending
    assert isinstance(chunks[-1], ErrorChunk)
    assert chunks[-1].error.code is ErrorCode.SHUTTING_DOWN
    assert [problem(response).code for response in responses] == [ErrorCode.SHUTTING_DOWN] * 3
    assert [response.status_code for response in responses] == [503] * 3
    assert refused.code is ErrorCode.SHUTTING_DOWN
    assert await served.logs.line_of(refused.correlation_id)
    lines = served.logs.lines("request")
    assert {(line["outcome"], line["error_code"]) for line in lines} == {("failed", "shutting_down")}
    assert "Exception in ASGI application" not in served.logs.getvalue()


@pytest.mark.parametrize(("minor", "is_hurried"), [(1, True), pytest.param(0, False, marks=pytest.mark.long)])
async def test_who_does_not_read_is_cut_off(upstream: ScriptedUpstream, minor: int, *, is_hurried: bool) -> None:
    """No last chunk can be sent, and the stream must not look complete: in HTTP/1.0, only a reset shows that."""
    script = upstream.script = Slow()
    variables = leading_to(
        upstream, PARLEY_WRITE_TIMEOUT_S="60", PARLEY_DRAIN_TIMEOUT_S="0.5" if not is_hurried else "30"
    )
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(parley(**variables))
        client = await stack.enter_async_context(served.client())
        reader, _ = await stack.enter_async_context(sending(client, chat("/chat", "flood", minor)))
        with anyio.fail_after(60):
            await script.is_blocked.wait()
            await end(served, is_hurried=is_hurried)
            with pytest.raises(ConnectionResetError):
                await reader.read()
    assert "ASGI callable" not in served.logs.getvalue()
