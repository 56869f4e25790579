"""The fake Parley, compared with the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.fake import FakeParley
from parley.testing import ErrorChunkFactory, stream_of
from parley.web.request import MAX_BODY_BYTES
from parley.web.schema import ChatRequest, ErrorResponse
from tests.support.faults import after
from tests.support.running import kind, problem, read_chunks
from tests.support.upstream import Script, answer, delta, respond

if TYPE_CHECKING:
    from tests.support.upstream import Exchange, ScriptedUpstream

HI = {"message": "hi"}
JSON = "application/json"

Told = Callable[[FakeParley], None]

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
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, script: Script, tell: Told
) -> None:
    """Status, headers, kinds of chunks and JSON bodies are the same."""
    upstream.script, fake = script, FakeParley()
    tell(fake)
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        assert told(await faked.post(path, json=HI)) == told(await client.post(path, json=HI))
    assert fake.requests == [ChatRequest(message="hi")]


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize("request_body", [HI, HI | {"include_reasoning": False}, HI | {"include_reasoning": True}])
async def test_the_fake_thinks_as_parley_does_for_those_who_ask(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, request_body: dict[str, object]
) -> None:
    """Other clients get no reasoning chunks, and their sequence numbers have no gaps."""
    upstream.script, fake = thinks, FakeParley()
    fake.answer(*stream_of("Hello", reasoning=["They greet.", " So do I."]))
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        assert told(await faked.post(path, json=request_body)) == told(await client.post(path, json=request_body))


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
    "another path": ("POST", "/nothing", b"{}", JSON),
}


@pytest.mark.parametrize(("method", "path", "content", "content_type"), REFUSED.values(), ids=REFUSED)
async def test_the_fake_refuses_what_parley_refuses(
    client: httpx.AsyncClient, method: str, path: str, content: bytes, content_type: str
) -> None:
    """The error text is the same, and no request is recorded."""
    fake = FakeParley()
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        headers = {"Content-Type": content_type, "X-Correlation-ID": "mine"}
        real, made = [await one.request(method, path, content=content, headers=headers) for one in (client, faked)]
    assert problem(real) == problem(made)
    assert told(real) == told(made)
    assert fake.requests == []


@pytest.mark.parametrize("path", ["/chat", "/chat/", "/chat/complete//"])
@pytest.mark.parametrize("content_type", ["Application/JSON", "application/json ; charset=utf-8"])
async def test_the_fake_takes_what_parley_takes(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, content_type: str
) -> None:
    """Trailing slashes and other spellings of the Content-Type are accepted."""
    upstream.script, fake = answer("Hello"), FakeParley()
    fake.answer(*stream_of("Hello"))
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        headers = {"Content-Type": content_type}
        real, made = [await one.post(path, content=b'{"message":"hi"}', headers=headers) for one in (client, faked)]
    assert told(real) == told(made)
    assert made.status_code == 200


@pytest.mark.parametrize("code", ErrorCode)
async def test_the_fake_can_fail_as_parley_does(code: ErrorCode) -> None:
    """The fake can give every error code, with the headers that belong to it."""
    fake = FakeParley()
    fake.fail(code, retry_after_s=2)
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        response = await faked.post("/chat", json=HI)
    assert problem(response).code is code
    assert response.headers["retry-after"] == "2"
    assert ("www-authenticate" in response.headers) is (code is ErrorCode.UNAUTHORIZED)


@pytest.mark.parametrize("given", ["mine-1", "not mine", "m" * 129, ""])
async def test_the_fake_keeps_the_correlation_ids_that_parley_keeps(client: httpx.AsyncClient, given: str) -> None:
    """Both replace an invalid ID."""
    async with httpx.AsyncClient(transport=FakeParley(), base_url="http://parley") as faked:
        responses = [await one.get("/chat", headers={"X-Correlation-ID": given}) for one in (client, faked)]
    assert [response.headers["x-correlation-id"] == given for response in responses] == [given == "mine-1"] * 2


def test_the_fakes_stream_comes_frame_by_frame_and_may_break() -> None:
    """The reader gets each chunk before the connection breaks."""
    fake = FakeParley()
    fake.answer(*stream_of("Hel", "lo")[:2])
    came: list[bytes] = []
    with (
        httpx.Client(transport=fake, base_url="http://parley") as client,
        client.stream("POST", "/chat", json=HI) as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        came.extend(response.iter_raw())
    assert [[chunk.seq for chunk in read_chunks(frame)] for frame in came] == [[0], [1]]


async def test_the_fakes_stream_comes_so_to_async_readers_too() -> None:
    """An async reader, too, gets each chunk before the connection breaks."""
    fake = FakeParley()
    fake.answer(*stream_of("Hel", "lo")[:2])
    came: list[bytes] = []

    async def read() -> None:
        async with (
            httpx.AsyncClient(transport=fake, base_url="http://parley") as client,
            client.stream("POST", "/chat", json=HI) as response,
        ):
            async for frame in response.aiter_raw():
                came.append(frame)  # noqa: PERF401  # a list comprehension would lose the frames before the break

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert [[chunk.seq for chunk in read_chunks(frame)] for frame in came] == [[0], [1]]


def test_the_fake_gives_its_answers_in_turn_and_the_last_again() -> None:
    """The last answer is repeated for all further requests."""
    fake = FakeParley()
    fake.fail(ErrorCode.OVERLOADED)
    fake.answer(*stream_of("Hello"))
    with httpx.Client(transport=fake, base_url="http://parley") as client:
        statuses = [client.post("/chat/complete", json=HI).status_code for _ in range(3)]
    assert statuses == [503, 200, 200]


def test_a_fake_that_was_told_nothing_says_so() -> None:
    """A test that forgets to set an answer fails with a clear message."""
    with (
        httpx.Client(transport=FakeParley(), base_url="http://parley") as client,
        pytest.raises(AssertionError, match="not told"),
    ):
        client.post("/chat", json=HI)
