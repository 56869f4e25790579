"""The framing of requests by RFC 9112: where a request begins, what it targets, and where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest

from parley.chat.errors import ErrorCode
from parley.request_parser import ServerConnection
from parley.settings import Secret
from parley.testing.upstream import answer
from parley.wire.schema import ErrorResponse
from tests.support.running import running, sending

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CHAT = b"POST /chat/complete HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"message":"Hi"}'
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
CLOSE = b"\r\nconnection: close\r\n"


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection is closed properly."""
    with anyio.fail_after(60):
        return await reader.read()


async def read_response(reader: asyncio.StreamReader) -> bytes:
    """Read one response that has a Content-Length."""
    with anyio.fail_after(60):
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head + await reader.readexactly(int(length))


# Where a request ends


@pytest.mark.parametrize("first", [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("after", [b"", LIVE, b"\r\n", b"no HTTP"])
async def test_after_a_request_of_two_lengths_nothing_is_a_request(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, first: bytes, after: bytes
) -> None:
    """A proxy may have used the other length and taken what follows for another caller's request."""
    upstream.script = answer("a")
    both = {b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"}
    (second,) = both - {first}
    async with sending(client, CHAT + first + second + b"\r\n" + IN_CHUNKS + after) as (reader, _):
        received = await read_to_the_end(reader)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert CLOSE in received.lower()


REFUSED = {
    "no key": (CHAT, 401),
    "no such path": (CHAT.replace(b"/chat/complete", b"/nothing"), 404),
    "no such method": (CHAT.replace(b"POST", b"PUT"), 405),
    "too large": (CHAT.replace(b"Host", b"Authorization: Bearer kkkkkkkkkkkkkkkk\r\nHost"), 413),
}


@pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("framing", [b"Content-Length: 9999999", b"Transfer-Encoding: chunked"])
async def test_a_refusal_before_the_end_of_a_request_ends_the_connection(
    make_settings: MakeSettings, upstream: ScriptedUpstream, head: bytes, status: int, framing: bytes
) -> None:
    """The refusal arrives although the client goes on sending, and what the client sends is not parsed."""
    async with (
        running(make_settings(api_keys=Secret("k" * 16))) as client,
        sending(client, head + framing + b"\r\n\r\n") as (reader, transport),
    ):
        if framing.endswith(b"chunked"):
            transport.write(b"%x\r\n" % 9_999_999 + b"x" * (2_000_000 if status == 413 else 0))
        transport.write(LIVE * 100_000)
        received = await read_to_the_end(reader)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1 ") == 1
    assert CLOSE in received.lower()
    msgspec.json.decode(received.partition(b"\r\n\r\n")[2], type=ErrorResponse)
    assert upstream.exchanges == []


async def test_a_head_request_that_stops_being_http_is_refused_without_a_body(
    make_settings: MakeSettings, logs: Logs
) -> None:
    """A response to HEAD has no body, whatever its Content-Length says."""
    head = CHAT.replace(b"POST", b"HEAD") + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n"
    async with running(make_settings(), logs) as client, sending(client, head) as (reader, _):
        received = await read_to_the_end(reader)
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert received.endswith(b"\r\n\r\n")
    assert [line["status"] for line in logs.lines("request") if line["method"] == "HEAD"] == [400]
    assert '"level":"error"' not in logs.getvalue()


async def test_a_client_that_asks_first_need_not_send_what_is_refused(make_settings: MakeSettings) -> None:
    """A client without a key is not told to continue."""
    async with running(make_settings(api_keys=Secret("k" * 16))) as client:
        expecting = CHAT + b"Expect: 100-continue\r\nContent-Length: 16\r\n\r\n"
        async with sending(client, expecting) as (reader, _):
            assert (await read_to_the_end(reader)).startswith(b"HTTP/1.1 401 ")
        known = expecting.replace(b"Host", b"Authorization: Bearer kkkkkkkkkkkkkkkk\r\nHost")
        async with sending(client, known) as (reader, transport):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            transport.write(BODY)
            assert (await read_response(reader)).startswith(b"HTTP/1.1 200 ")


async def test_a_few_thousand_small_chunks_are_served(client: httpx.AsyncClient) -> None:
    """Clients that write JSON token by token send such chunks; the other body has chunks of a usual size."""
    message = "x" * 1_900
    for size, text in ((1, message), (64, message * 16)):
        body = b'{"message":"%b"}' % text.encode()
        chunks = [body[start : start + size] for start in range(0, len(body), size)]

        async def pieces(chunks: list[bytes] = chunks) -> Any:
            for chunk in chunks:
                yield chunk

        response = await client.post("/chat/complete", content=pieces(), headers={"Content-Type": "application/json"})
        assert response.status_code == 200


# What a request targets


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://any.host/health/live", 200),
        (b"https://any.host:8443/health/live?a=/b", 200),
        (b"HTTP://[::1]/health/live", 200),
        (b"http://any.host/nothing", 404),
        (b"http://any.host", 404),
        (b"http://any.host?a=/health/live", 404),
        (b"ftp://any.host/health/live", 404),
    ],
)
async def test_the_path_may_be_part_of_a_whole_address(client: httpx.AsyncClient, target: bytes, status: int) -> None:
    """Clients that think that Parley is a proxy send absolute URLs."""
    async with sending(client, LIVE.replace(b"/health/live", target)) as (reader, _):
        assert (await read_response(reader)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("target", "path"), [(b"http://x", b"/"), (b"https://x?a=b", b"/?a=b"), (b"http://x/a?b", b"/a?b"), (b"/x", b"/x")]
)
def test_an_address_without_a_path_is_that_of_the_root(target: bytes, path: bytes) -> None:
    """The query is kept."""
    connection = ServerConnection()
    connection.receive_data(LIVE.replace(b"/health/live", target))
    assert connection.next_event().target == path


@pytest.mark.parametrize(
    "line", [b"PRI * HTTP/2.0", b"GET /health/live HTTP/2.0", b"GET / HTTP/3.0", b"GET / HTTP/0.9", b"GET / HTTP/9.9"]
)
async def test_another_version_of_http_is_not_spoken(client: httpx.AsyncClient, logs: Logs, line: bytes) -> None:
    """The response names the supported version, and the request is logged."""
    async with sending(client, line + b"\r\n\r\nSM\r\n\r\n") as (reader, _):
        head, _, body = (await read_to_the_end(reader)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert CLOSE in head.lower() + b"\r\n"
    error = msgspec.json.decode(body, type=ErrorResponse)
    assert (error.code, error.detail) == (ErrorCode.INVALID_REQUEST, "Parley speaks HTTP/1.1.")
    line_ = await logs.line()
    assert (line_["status"], line_["level"], line_["correlation_id"]) == (505, "info", error.correlation_id)


async def test_the_first_version_of_http_is_answered(client: httpx.AsyncClient) -> None:
    """The response ends when the connection is closed."""
    async with sending(client, b"GET /health/live HTTP/1.0\r\n\r\n") as (reader, _):
        assert (await read_to_the_end(reader)).startswith(b"HTTP/1.1 200 ")


# Where a request begins


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n" * 20, b"\n"])
@pytest.mark.parametrize("is_split", [False, True])
async def test_blank_lines_before_a_request_are_skipped(
    client: httpx.AsyncClient, blank: bytes, *, is_split: bool
) -> None:
    """Blank lines are also skipped if they arrive byte by byte, or between two requests."""
    async with sending(client, b"") as (reader, transport):
        for _ in range(2):
            for piece in [blank[at : at + 1] for at in range(len(blank))] if is_split else [blank]:
                transport.write(piece)
                await client.get("/health/live")  # by then, Parley has read the piece
            transport.write(LIVE)
            assert (await read_response(reader)).startswith(b"HTTP/1.1 200 ")


async def test_blank_lines_are_no_request(make_settings: MakeSettings, logs: Logs) -> None:
    """The read timeout runs from the first blank line."""
    async with running(make_settings(read_timeout_s=0.2), logs) as client:
        async with sending(client, b"\r\n") as (reader, transport):
            await client.get("/health/live")
            transport.write(b"\r\n")
            assert await read_to_the_end(reader) == b""
        assert (await logs.line("connection_timed_out"))["awaited"] == "request"
