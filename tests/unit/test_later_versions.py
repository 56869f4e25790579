"""Parley's own clients, when a later version of Parley answers them."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from parley.chat.errors import ErrorCode
from parley.evaluation import answers
from parley.terminal import ChatFailedError, ask
from parley.testing.factories import ErrorChunkFactory, ErrorResponseFactory, stream_of
from parley.testing.in_memory import FakeParley
from parley.wire.schema import ChatRequest, ErrorResponse

LATER = ErrorCode("code_of_the_future")


@pytest.fixture
def later() -> FakeParley:
    """Return a Parley whose answer breaks off by an error that this version does not know."""
    error = ErrorResponseFactory.build(code=LATER, error="It broke.", detail="By fate.", action="Wait.", retryable=True)
    fake = FakeParley()
    fake.answer(*stream_of("Hel", ended_by=ErrorChunkFactory.build(error=error)))
    return fake


def test_a_code_that_is_not_known_can_be_decoded() -> None:
    """It is none of the known ones; what is no text is no code."""
    error = ErrorResponseFactory.build()
    sent = msgspec.json.encode(error).replace(b'"code":"%b"' % error.code.encode(), b'"code":"code_of_the_future"')
    code = msgspec.json.decode(sent, type=ErrorResponse).code
    assert (code, str(code), code.name) == (LATER, "code_of_the_future", "code_of_the_future")
    assert code not in set(ErrorCode)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(sent.replace(b'"code_of_the_future"', b"5"), type=ErrorResponse)
    with pytest.raises(ValueError, match="5"):
        ErrorCode(msgspec.json.decode(b"5"))


def test_the_terminal_tells_an_error_that_it_does_not_know(later: FakeParley) -> None:
    """It shows the server's own sentences and the code."""
    with httpx.Client(transport=later, base_url="http://parley") as client:
        chunks = ask(client, "Hi", [])
        assert [chunk.__struct_config__.tag for chunk in (next(chunks), next(chunks))] == ["start", "text"]
        with pytest.raises(ChatFailedError, match=r"It broke\. By fate\. Wait\. \[code_of_the_future, "):
            next(chunks)


def test_the_evaluation_tells_an_error_that_it_does_not_know(later: FakeParley) -> None:
    """The server is still a Parley."""

    async def evaluate() -> answers.Answer:
        async with httpx.AsyncClient(transport=later, base_url="http://parley") as client:
            return await answers.ask(client, ChatRequest(message="Hi"))

    answer = asyncio.run(evaluate())
    assert (answer.text, answer.error) == ("Hel", "code_of_the_future")
