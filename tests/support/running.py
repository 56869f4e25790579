"""The Parley of the integration tests: the real server on a real socket, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from contextlib import asynccontextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

import anyio
import httpx
import httpx_sse
import msgspec
import pytest
import uvicorn

from parley.app import create_app
from parley.chat.events import Usage, UsageSource
from parley.server import options
from parley.wire.schema import ErrorResponse, StreamChunk
from tests.support import contract
from tests.support.canaries import CANARIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from parley.settings import Settings

FORECASTER = "tests.support.agents:forecaster"
BOTH = pytest.mark.parametrize("agent", [None, FORECASTER], ids=["plain", "agent"], indirect=True)


def with_tool(agent: str | None, usage: Usage) -> Usage:
    """Return the cost of a request whose last model call costs `usage`: an agent has called its tool before that."""
    return usage if agent is None else Usage.sum([_TOOL_COST, usage])


_TOOL_COST = Usage(input_tokens=100, output_tokens=10, total_tokens=110, source=UsageSource.UPSTREAM)


@asynccontextmanager
async def running(settings: Settings, output: TextIO | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Run Parley, log to `output` if it is given, and yield a client."""
    with redirect_stdout(output or sys.stdout):
        server = uvicorn.Server(uvicorn.Config(create_app(settings), **options(settings)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "http://{}:{}".format(*listener.getsockname())
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, [listener])
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; the default one takes 20 ms to load certificates
            async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False, verify=tls) as client:
                (await client.get("/health/live")).raise_for_status()
                try:
                    yield client
                finally:
                    server.should_exit = True


@asynccontextmanager
async def sending(
    client: httpx.AsyncClient, data: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Transport]]:
    """Open a connection and send these bytes; yield a reader with a small buffer, and the transport."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    connection.setblocking(False)  # noqa: FBT003  # it has no other parameter
    await asyncio.get_running_loop().sock_connect(connection, (client.base_url.host, client.base_url.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    try:
        writer.write(data)
        yield reader, writer.transport  # type: ignore[misc]  # it can read and write
    finally:
        writer.transport.abort()


def read_chunks(data: bytes) -> list[StreamChunk]:
    """Return the chunks of a complete body."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=data)
    return [decode_chunk(event.data) for event in httpx_sse.EventSource(response).iter_sse()]


def decode_chunk(data: str) -> StreamChunk:
    """Decode a chunk as the published union, and check it against the contract."""
    contract.check("StreamChunk", json.loads(data))
    chunk: StreamChunk = msgspec.json.decode(data, type=StreamChunk)
    return chunk


async def stream(client: httpx.AsyncClient, request: object, **options: Any) -> list[StreamChunk]:
    """POST to /chat and return the whole stream, after checks that hold for every stream."""
    async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=request, **options) as source:
        assert source.response.status_code == 200, await source.response.aread()
        events = [event async for event in source.aiter_sse()]
    assert not any(canary in event.data for event in events for canary in CANARIES)
    chunks = [decode_chunk(event.data) for event in events]
    assert [event.event for event in events] == [kind(chunk) for chunk in chunks]
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    requested_by = {getattr(chunk, "requested_by", None) for chunk in chunks} - {None}
    assert not requested_by or (isinstance(request, dict) and all(request[field] for field in requested_by))
    assert [kind(chunk) in {"done", "error"} for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return chunks


def kind(chunk: StreamChunk) -> str:
    """Return the chunk's type as it is on the wire."""
    return str(chunk.__struct_config__.tag)


def problem(response: httpx.Response) -> ErrorResponse:
    """Return the error of a refused request, after checks that hold for every error."""
    assert response.headers["content-type"] == "application/json"
    contract.check("ErrorResponse", response.json())
    error = msgspec.json.decode(response.content, type=ErrorResponse, strict=True)
    assert error.error
    assert error.detail
    assert error.action
    assert error.correlation_id == response.headers["x-correlation-id"]
    assert not any(canary in response.text for canary in CANARIES)
    return error
