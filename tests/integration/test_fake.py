"""The fake Parley, in memory and on a socket, compared with the real one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.settings import Secret
from parley.testing.factories import ErrorChunkFactory, ErrorResponseFactory, stream_of
from parley.testing.fake import Fake
from parley.testing.faults import after
from parley.testing.in_memory import FakeParley
from parley.testing.server import FakeParleyServer
from parley.testing.upstream import answer, delta, respond
from parley.wire.schema import MAX_BODY_BYTES, ChatRequest, ErrorResponse
from tests.support import contract
from tests.support.running import kind, problem, read_chunks, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from parley.testing.upstream import ScriptedUpstream

HI = {"message": "hi"}
KEY = "a-key-of-16-chars"
JSON = "application/json"

Told = Callable[[Fake], None]

SAME: dict[str, tuple[Script, Told]] = {
    "a whole answer": (answer("Hello"), lambda fake: fake.answer(*stream_of("Hello"))),
    "an answer that breaks off": (
        answer("Hello", finish_reason=None),
        lambda fake: fake.answer(
            *stream_of("Hello", ended_by=ErrorChunkFactory.build(error=broken(ErrorCode.UPSTREAM_TRUNCATED)))
        ),
    ),
    "an answer that the upstream refuses in the middle": (
        after(["Hello"], lambda exchange: exchange.events({"error": {"code": "content_filter", "message": "No."}})),
        lambda fake: fake.answer(
            *stream_of("Hello", ended_by=ErrorChunkFactory.build(error=broken(ErrorCode.CONTENT_FILTERED)))
        ),
    ),
    "an error": (
        respond(429, {}, retry_after="7"),
        lambda fake: fake.fail(ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=7),
    ),
}


@pytest.fixture(params=[FakeParley, FakeParleyServer], ids=["in memory", "on a socket"])
def fake(request: pytest.FixtureRequest) -> Fake:
    """Return a fake of each kind."""
    made: Fake = request.param()
    return made


@pytest.fixture
def faked(fake: Fake) -> Iterator[httpx.Client]:
    """Yield a client of the fake; not an async one, because the fake's thread does not know the clock that jumps."""
    if isinstance(fake, FakeParley):
        with httpx.Client(transport=fake, base_url="http://parley") as client:
            yield client
    if isinstance(fake, FakeParleyServer):
        with fake, httpx.Client(base_url=fake.url, trust_env=False) as client:
            yield client


def send(faked: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request to a fake; it may block the test's loop, as the fake does not run in that."""
    return faked.request(method, path, **options)


def broken(code: ErrorCode) -> ErrorResponse:
    """Return the error for an `error` chunk."""
    return ErrorResponse.of(ChatError(code), "any")


def told(response: httpx.Response) -> tuple[object, ...]:
    """Check the correlation ID; return status, headers and body without values that may differ, such as times."""
    correlation_id = response.headers["x-correlation-id"]
    if response.headers["content-type"].startswith("text/event-stream"):
        chunks = [(kind(chunk), chunk.seq) for chunk in read_chunks(response.content)]
        assert response.text.count(correlation_id) == sum(kind in {"start", "error"} for kind, _ in chunks)
        body: object = chunks
    else:
        body = {
            name: None if name in {"usage", "timing", "model"} else value for name, value in response.json().items()
        }
        assert body.pop("correlation_id") == correlation_id
    headers = {name: response.headers.get(name) for name in ("content-type", "retry-after", "www-authenticate")}
    return response.status_code, headers, sorted(response.headers.get("allow", "").split(", ")), body


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize(("script", "tell"), SAME.values(), ids=SAME)
async def test_the_fake_answers_as_parley_does(
    client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    fake: Fake,
    faked: httpx.Client,
    path: str,
    script: Script,
    tell: Told,
) -> None:
    """Status, headers, kinds of chunks and JSON bodies are the same."""
    upstream.script = script
    tell(fake)
    assert told(send(faked, "POST", path, json=HI)) == told(await client.post(path, json=HI))
    assert fake.requests == [ChatRequest(message="hi")]


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize("request_body", [HI, HI | {"include_reasoning": False}, HI | {"include_reasoning": True}])
async def test_the_fake_thinks_as_parley_does_for_those_who_ask(
    client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    fake: Fake,
    faked: httpx.Client,
    path: str,
    request_body: dict[str, object],
) -> None:
    """Other clients get no reasoning chunks, and their sequence numbers have no gaps."""
    upstream.script = thinks
    fake.answer(*stream_of("Hello", reasoning=["They greet.", " So do I."]))
    assert told(send(faked, "POST", path, json=request_body)) == told(await client.post(path, json=request_body))


async def thinks(exchange: Exchange) -> None:
    """Send two pieces of reasoning, then the answer."""
    await exchange.head()
    for thought in ("They greet.", " So do I."):
        await exchange.events({"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]})
    await exchange.events(delta("Hello"), delta(finish_reason="stop"), "[DONE]")
    await exchange.end()


REFUSED: dict[str, tuple[str, str, bytes, str]] = {
    "a blank message": ("POST", "/chat", b'{"message":""}', JSON),
    "a field that there is not": ("POST", "/chat", b'{"message":"hi","more":1}', JSON),
    "a field that quotes": ("POST", "/chat", b'{"message":"hi","a secret, it is":1}', JSON),
    "a role that there is not": ("POST", "/chat", b'{"message":"hi","history":[{"role":"system","content":""}]}', JSON),
    "too many tokens": ("POST", "/chat", b'{"message":"hi","max_output_tokens":3000}', JSON),
    "too much time": ("POST", "/chat/complete", b'{"message":"hi","timeout_s":31}', JSON),
    "no end": ("POST", "/chat", b"{", JSON),
    "no body": ("POST", "/chat", b"", JSON),
    "no UTF-8": ("POST", "/chat", b'{"message":"\xff"}', JSON),
    "too deep": ("POST", "/chat", b'{"message":' + b"[" * 100_000, JSON),
    "too large": ("POST", "/chat", b" " * (MAX_BODY_BYTES + 1), JSON),
    "too large, and no JSON": ("POST", "/chat", b" " * (MAX_BODY_BYTES + 1), "text/plain"),
    "another type": ("POST", "/chat", b"{}", "text/plain"),
    "another method": ("GET", "/chat", b"", JSON),
    "another method of a page": ("POST", "/info", b"{}", JSON),
    "another path": ("POST", "/nothing", b"{}", JSON),
}


@pytest.mark.parametrize(("method", "path", "content", "content_type"), REFUSED.values(), ids=REFUSED)
async def test_the_fake_refuses_what_parley_refuses(
    client: httpx.AsyncClient,
    fake: Fake,
    faked: httpx.Client,
    method: str,
    path: str,
    content: bytes,
    content_type: str,
) -> None:
    """The error text is the same, and the request is recorded only as received."""
    headers = {"Content-Type": content_type, "X-Correlation-ID": "mine"}
    real = await client.request(method, path, content=content, headers=headers)
    made = send(faked, method, path, content=content, headers=headers)
    assert problem(real) == problem(made)
    assert told(real) == told(made)
    assert fake.requests == []
    (received,) = fake.received
    assert (received.method, received.path, received.body) == (method, path, content)


@pytest.mark.parametrize("path", ["/chat", "/chat/", "/chat/complete//"])
@pytest.mark.parametrize("content_type", ["Application/JSON", "application/json ; charset=utf-8"])
async def test_the_fake_takes_what_parley_takes(
    client: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    fake: Fake,
    faked: httpx.Client,
    path: str,
    content_type: str,
) -> None:
    """Trailing slashes and other spellings of the Content-Type are accepted."""
    upstream.script = answer("Hello")
    fake.answer(*stream_of("Hello"))
    headers = {"Content-Type": content_type}
    real = await client.post(path, content=b'{"message":"hi"}', headers=headers)
    made = send(faked, "POST", path, content=b'{"message":"hi"}', headers=headers)
    assert told(real) == told(made)
    assert made.status_code == 200


@pytest.mark.parametrize("code", ErrorCode)
def test_the_fake_can_fail_as_parley_does(fake: Fake, faked: httpx.Client, code: ErrorCode) -> None:
    """The fake can give every error code, with the headers that belong to it."""
    fake.fail(code, retry_after_s=2)
    response = faked.post("/chat", json=HI)
    assert problem(response).code is code
    assert response.headers["retry-after"] == "2"
    assert ("www-authenticate" in response.headers) is (code is ErrorCode.UNAUTHORIZED)


@pytest.mark.parametrize("given", ["mine-1", "not mine", "m" * 129, ""])
async def test_the_fake_keeps_the_correlation_ids_that_parley_keeps(
    client: httpx.AsyncClient, faked: httpx.Client, given: str
) -> None:
    """Both replace an invalid ID."""
    headers = {"X-Correlation-ID": given}
    responses = [await client.get("/chat", headers=headers), send(faked, "GET", "/chat", headers=headers)]
    assert [response.headers["x-correlation-id"] == given for response in responses] == [given == "mine-1"] * 2


@pytest.mark.parametrize("sent", ["", "Bearer", "Basic a2V5", "Bearer wrong", f"Bearer {KEY}", f"bearer  {KEY}"])
@pytest.mark.parametrize("content", [b'{"message":"hi"}', b"{"])
async def test_the_fake_takes_the_keys_that_parley_takes(
    make_settings: Callable[..., Settings], fake: Fake, faked: httpx.Client, sent: str, content: bytes
) -> None:
    """A request without a valid key is refused before its body is read; the key is recorded."""
    fake.require_key(KEY)
    fake.answer(*stream_of("Hello"))
    headers = {"Authorization": sent, "Content-Type": JSON}
    async with running(make_settings(api_keys=Secret(KEY))) as client:
        real = await client.post("/chat", content=content, headers=headers)
    assert told(send(faked, "POST", "/chat", content=content, headers=headers)) == told(real)
    assert fake.received[0].key == (sent.split()[1] if "earer " in sent else None)


@pytest.mark.parametrize("break_at", [0, 1, 60, 200])
@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
def test_the_fake_breaks_where_it_is_told_to(fake: Fake, faked: httpx.Client, path: str, break_at: int) -> None:
    """The client gets that many bytes, then an error."""
    headers = {"X-Correlation-ID": "mine"}
    chunks = stream_of("Hel", "lo")
    fake.answer(*chunks)
    fake.answer(*chunks, break_at=break_at)
    whole = faked.post(path, json=HI, headers=headers).content
    assert until_it_breaks(faked, path, headers=headers) == whole[:break_at]


@pytest.mark.parametrize(("path", "count"), [("/chat", 2), ("/chat/complete", 0)])
def test_the_fake_breaks_without_a_last_chunk(fake: Fake, faked: httpx.Client, path: str, count: int) -> None:
    """The client of a stream gets each chunk before the connection breaks."""
    fake.answer(*stream_of("Hel", "lo")[:2])
    came = until_it_breaks(faked, path)
    assert [chunk.seq for chunk in read_chunks(came)] == list(range(count))


def until_it_breaks(faked: httpx.Client, path: str, **options: Any) -> bytes:
    """Return what arrives of a body before the connection breaks."""
    came: list[bytes] = []
    with faked.stream("POST", path, json=HI, **options) as response, pytest.raises(httpx.RemoteProtocolError):
        came.extend(response.iter_raw())
    return b"".join(came)


@pytest.mark.parametrize("path", ["/info", "/health/live", "/health/ready"])
@pytest.mark.parametrize("sent", [None, KEY])
async def test_the_fakes_pages_are_as_parleys(
    make_settings: Callable[..., Settings], fake: Fake, faked: httpx.Client, path: str, sent: str | None
) -> None:
    """The fields are the same, the limits too; `/info` needs a key if the chats do, and the health checks do not."""
    fake.require_key(KEY)
    headers = {"Authorization": f"Bearer {sent}"} if sent else {}
    async with running(make_settings(api_keys=Secret(KEY))) as client:
        real = await client.get(path, headers=headers)
    made = send(faked, "GET", path, headers=headers)
    assert made.status_code == real.status_code == (401 if path == "/info" and not sent else 200)
    varying = {"model", "correlation_id"}
    assert [made.json() | dict.fromkeys(varying, 0)] == [real.json() | dict.fromkeys(varying, 0)]


def test_the_fake_can_fail_by_a_code_that_nobody_knows(fake: Fake, faked: httpx.Client) -> None:
    """So a test can show that a client acts on `retryable` and the status."""
    error = ErrorResponseFactory.build(
        code=ErrorCode("code_of_the_future"), error="It broke.", detail="By fate.", action="Wait.", retryable=True
    )
    with pytest.raises(ValueError, match="code_of_the_future"):
        fake.fail(error.code)
    fake.fail(error, status=418)
    response = faked.post("/chat", json=HI)
    assert (response.status_code, response.json()["code"], response.json()["retryable"]) == (418, error.code, True)


def test_the_fake_drops_a_connection_without_a_response(fake: Fake, faked: httpx.Client) -> None:
    """The request has been received."""
    fake.drop()
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        faked.post("/chat", json=HI)
    assert len(fake.received) == 1


def test_the_fake_paces_its_chunks_and_notes_that_the_client_left(fake: Fake, faked: httpx.Client) -> None:
    """The first chunk arrives at once, before the others, which would take an hour."""
    fake.answer(*stream_of("Hel", "lo"), pace_s=3600)
    with faked.stream("POST", "/chat", json=HI, timeout=60) as response:
        pieces = response.iter_raw()
        assert b"event: start" in next(pieces)
        assert not fake.received[0].left.is_set()
    assert fake.received[0].left.wait(timeout=60)


def test_a_client_that_reads_the_whole_answer_has_not_left(fake: Fake, faked: httpx.Client) -> None:
    """The connection is used again for the next request."""
    fake.answer(*stream_of("Hel", "lo"), pace_s=0.001)
    for _ in range(2):
        assert len(read_chunks(faked.post("/chat", json=HI).content)) == 4
    assert [received.left.is_set() for received in fake.received] == [False, False]


def test_a_fake_that_is_slower_than_the_clients_patience_is_a_timeout(fake: Fake, faked: httpx.Client) -> None:
    """In memory, too: a test of a client that gives up must not pass without it."""
    fake.answer(*stream_of("Hel", "lo"), pace_s=3600)
    with (
        faked.stream("POST", "/chat", json=HI, timeout=httpx.Timeout(60, read=1)) as response,
        pytest.raises(httpx.ReadTimeout),
    ):
        list(response.iter_raw())


async def test_the_fakes_stream_comes_frame_by_frame_to_async_readers_too() -> None:
    """An async reader, too, gets each chunk, with a pause before it, before the connection breaks."""
    fake = FakeParley()
    fake.answer(*stream_of("Hel", "lo")[:2], pace_s=3600)
    came: list[bytes] = []

    async def read() -> None:
        async with (
            httpx.AsyncClient(transport=fake, base_url="http://parley", timeout=7200) as client,
            client.stream("POST", "/chat", json=HI) as response,
        ):
            async for frame in response.aiter_raw():
                came.append(frame)  # noqa: PERF401  # a list comprehension would lose the frames before the break

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert [[chunk.seq for chunk in read_chunks(frame)] for frame in came] == [[0], [1]]


def test_the_fake_gives_its_answers_in_turn_and_the_last_again(fake: Fake, faked: httpx.Client) -> None:
    """The last answer is repeated for all further requests."""
    fake.fail(ErrorCode.OVERLOADED)
    fake.answer(*stream_of("Hello"))
    statuses = [faked.post("/chat/complete", json=HI).status_code for _ in range(3)]
    assert statuses == [503, 200, 200]


def test_a_fake_that_was_told_nothing_says_so_to_an_httpx_client() -> None:
    """A test that forgets to set an answer fails with a clear message."""
    with (
        httpx.Client(transport=FakeParley(), base_url="http://parley") as client,
        pytest.raises(AssertionError, match="not told"),
    ):
        client.post("/chat", json=HI)


def test_a_fake_server_that_was_told_nothing_says_so_at_its_end() -> None:
    """The client's connection breaks; the test fails with a clear message."""
    with (
        pytest.raises(AssertionError, match="not told"),
        FakeParleyServer() as server,
        pytest.raises(httpx.TransportError),
    ):
        httpx.post(f"{server.url}/chat", json=HI, trust_env=False)


def test_a_page_of_any_origin_may_call_the_fake_server() -> None:
    """The preflight allows the headers that it asks for, and the page may read the correlation ID."""
    with FakeParleyServer() as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        server.answer(*stream_of("Hello"))
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/chat", headers={**asked, "Access-Control-Request-Headers": "content-type, x-mine"})
        response = client.post("/chat", json=HI, headers={"Origin": "https://app.example"})
    assert allowed.is_success
    assert allowed.headers["access-control-allow-headers"] == "content-type, x-mine"
    assert response.headers["access-control-allow-origin"] == "*"
    assert "X-Correlation-ID" in response.headers["access-control-expose-headers"]
    assert len(server.received) == 1


@pytest.mark.parametrize("body", ["with its length", "in chunks", "after 100 Continue"])
def test_the_fake_server_takes_bodies_as_clients_send_them(body: str) -> None:
    """Some clients do not know the length beforehand, and some wait for permission."""
    headers = {"Content-Type": JSON, **({"Expect": "100-continue"} if "100" in body else {})}
    with FakeParleyServer() as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        server.answer(*stream_of("Hello"))
        content = iter([b'{"message":', b'"hi"}']) if "chunks" in body else b'{"message":"hi"}'
        assert client.post("/chat", content=content, headers=headers).is_success
    assert server.requests == [ChatRequest(message="hi")]


@pytest.mark.parametrize("head", ["HTTP/1.0\r\n", "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"])
def test_the_fake_server_closes_the_connections_of_clients_that_read_to_the_end(head: str) -> None:
    """An HTTP/1.0 client knows no chunks of a body."""
    with FakeParleyServer() as server:
        server.answer(*stream_of("Hello"))
        request = f"POST /chat {head}Content-Type: {JSON}\r\nContent-Length: 16\r\n\r\n" + '{"message":"hi"}'
        with connected(server) as client:
            client.sendall(request.encode())
            came = client.makefile("rb").read()
    assert b"event: done" in came
    assert (b"chunked" in came) is ("1.1" in head)
    assert (b"\r\n\r\nevent: start" in came) is ("1.0" in head)


def test_the_end_of_the_server_closes_every_connection() -> None:
    """Also those that are new, idle, in the middle of a request, or do not read their answer."""
    request = f"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 16\r\n\r\n".encode()
    with ExitStack() as clients:
        with FakeParleyServer() as server:
            server.answer(*stream_of("x" * 5_000_000))
            opened = [clients.enter_context(connected(server)) for _ in range(4)]
            opened[1].sendall(request)
            opened[2].sendall(request + b'{"message":"hi"}')
            opened[2].recv(1)
            opened[3].sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            opened[3].recv(1)
            opened += [clients.enter_context(connected(server)) for _ in range(10)]
        for client in opened:
            with suppress(ConnectionResetError):
                assert client.makefile("rb").read().count(b"event: done") == 0


def connected(server: FakeParleyServer) -> socket.socket:
    """Return a connection to a server, on which nothing waits for more than a minute."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_a_fake_server_can_be_started_again() -> None:
    """Its answers and what it received are kept."""
    server = FakeParleyServer()
    server.answer(*stream_of("Hello"))
    for count in (1, 2):
        with server:
            httpx.post(f"{server.url}/chat", json=HI, trust_env=False)
        assert len(server.requests) == count


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_fakes_headers_are_those_of_the_contract(faked: httpx.Client, fake: Fake, method: str) -> None:
    """Each header that the contract requires of a response is there."""
    fake.answer(*stream_of("Hello"))
    for path, operations in contract.read()["paths"].items():
        if (operation := operations.get(method.lower())) is not None:
            response = faked.request(method, path, json=HI if method == "POST" else None)
            declared = operation["responses"][str(response.status_code)]["headers"]
            required = {name.lower() for name, header in declared.items() if header.get("required")}
            assert required <= response.headers.keys()


def test_a_port_that_is_taken_is_an_error_at_the_start() -> None:
    """The error is the operating system's."""
    with FakeParleyServer() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), FakeParleyServer(port):
            pass
