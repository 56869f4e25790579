"""The fake Parley answers as the real one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.fake import FakeParley
from parley.testing import ErrorChunkFactory, stream_of
from parley.web.schema import ChatRequest, ErrorResponse
from tests.support.running import kind, problem, read_chunks
from tests.support.upstream import Script, answer, respond

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream

HI = {"message": "hi"}

Told = Callable[[FakeParley], None]

SAME: dict[str, tuple[Script, Told]] = {
    "a whole answer": (answer("Hello"), lambda fake: fake.answer(*stream_of("Hello"))),
    "an answer that breaks off": (
        answer("Hello", finish_reason=None),
        lambda fake: fake.answer(
            *stream_of("Hello", ended_by=ErrorChunkFactory.build(error=broken(ErrorCode.UPSTREAM_TRUNCATED)))
        ),
    ),
    "an error": (
        respond(429, {}, retry_after="7"),
        lambda fake: fake.fail(ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=7),
    ),
}


def broken(code: ErrorCode) -> ErrorResponse:
    """Return an error as a chunk has it."""
    return ErrorResponse.of(ChatError(code), "any")


def told(response: httpx.Response) -> tuple[object, ...]:
    """Return all that a client can tell of a response, but for times and tokens; the correlation id fits everywhere."""
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
    return response.status_code, response.headers["content-type"], response.headers.get("retry-after"), body


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize(("script", "tell"), SAME.values(), ids=SAME)
async def test_the_fake_answers_as_parley_does(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, script: Script, tell: Told
) -> None:
    """Status, headers, chunks, bodies."""
    upstream.script, fake = script, FakeParley()
    tell(fake)
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        assert told(await faked.post(path, json=HI)) == told(await client.post(path, json=HI))
    assert fake.requests == [ChatRequest(message="hi")]


@pytest.mark.parametrize(
    ("method", "path", "content", "content_type"),
    [
        ("POST", "/chat", b'{"message":""}', "application/json"),
        ("POST", "/chat", b'{"message":"hi","more":1}', "application/json"),
        ("POST", "/chat", b"{", "application/json"),
        ("POST", "/chat", b"{}", "text/plain"),
        ("GET", "/chat", b"", ""),
        ("POST", "/nothing", b"{}", "application/json"),
    ],
)
async def test_the_fake_refuses_what_parley_refuses(
    client: httpx.AsyncClient, method: str, path: str, content: bytes, content_type: str
) -> None:
    """By the same status and code; it takes no answer."""
    fake = FakeParley()
    async with httpx.AsyncClient(transport=fake, base_url="http://parley") as faked:
        headers = {"Content-Type": content_type, "X-Correlation-ID": "mine"}
        real, made = [await one.request(method, path, content=content, headers=headers) for one in (client, faked)]
    assert (made.status_code, problem(made).code) == (real.status_code, problem(real).code)
    assert fake.requests == []


def test_the_fakes_stream_comes_frame_by_frame_and_may_break() -> None:
    """The reader has each chunk before the connection breaks."""
    fake = FakeParley()
    fake.answer(*stream_of("Hel", "lo")[:2])
    came: list[bytes] = []
    with (
        httpx.Client(transport=fake, base_url="http://parley") as client,
        client.stream("POST", "/chat", json=HI) as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        came.extend(response.iter_raw())
    assert [chunk.seq for chunk in read_chunks(b"".join(came))] == [0, 1]
    assert len(came) == 2


def test_the_fake_gives_its_answers_in_turn_and_the_last_again() -> None:
    """As it was told."""
    fake = FakeParley()
    fake.fail(ErrorCode.OVERLOADED)
    fake.answer(*stream_of("Hello"))
    with httpx.Client(transport=fake, base_url="http://parley") as client:
        statuses = [client.post("/chat/complete", json=HI).status_code for _ in range(3)]
    assert statuses == [503, 200, 200]


def test_a_fake_that_was_told_nothing_says_so() -> None:
    """A test that forgets it fails where it forgets."""
    with (
        httpx.Client(transport=FakeParley(), base_url="http://parley") as client,
        pytest.raises(AssertionError, match="not told"),
    ):
        client.post("/chat", json=HI)
