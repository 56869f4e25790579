"""`parley.testing`, used as another project would use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.settings import Settings
from parley.testing import factories
from parley.wire.schema import ChatRequest, DoneChunk, ErrorChunk, ErrorResponse, ReasoningChunk, StreamChunk, TextChunk

if TYPE_CHECKING:
    from polyfactory.factories.msgspec_factory import MsgspecFactory

FACTORIES: list[type[MsgspecFactory[Any]]] = [
    factories.ChatRequestFactory,
    factories.ChatResponseFactory,
    factories.DoneChunkFactory,
    factories.ErrorChunkFactory,
    factories.ErrorResponseFactory,
    factories.HistoryTurnFactory,
    factories.ReasoningChunkFactory,
    factories.StartChunkFactory,
    factories.TextChunkFactory,
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_what_a_factory_makes_is_valid_on_the_wire(factory: type[MsgspecFactory[Any]]) -> None:
    """The value stays the same when it is encoded and decoded strictly."""
    for made in factory.batch(20):
        assert msgspec.json.decode(msgspec.json.encode(made), type=factory.__model__) == made


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_seed_makes_a_factory_build_the_same_again(factory: type[MsgspecFactory[Any]]) -> None:
    """What other factories build in between makes no difference."""
    factory.seed_random(1)
    first = factory.batch(3)
    for other in FACTORIES:
        if other is not factory:
            other.build()
    factory.seed_random(1)
    assert factory.batch(3) == first


def test_what_is_built_could_be_true() -> None:
    """Usage adds up, the first token is not after the end, and an error has its code's sentences."""
    for chunk in factories.DoneChunkFactory.batch(20):
        assert isinstance(chunk, DoneChunk)
        assert chunk.usage.input_tokens
        assert chunk.usage.output_tokens
        assert chunk.usage.total_tokens == chunk.usage.input_tokens + chunk.usage.output_tokens
        assert chunk.timing.first_token_ms is not None
        assert chunk.timing.first_token_ms <= chunk.timing.total_ms
    for code in ErrorCode:
        error = factories.ErrorResponseFactory.build(code=code)
        assert error == ErrorResponse.of(ChatError(code), error.correlation_id)


def test_every_request_of_the_factory_is_one_that_the_defaults_allow() -> None:
    """The request is within the default limits, and the prompt keeps its values."""
    for request in factories.ChatRequestFactory.batch(20):
        assert isinstance(request, ChatRequest)
        prompt = request.to_prompt(Settings(), "")
        assert (prompt.max_output_tokens, prompt.timeout_s) == (request.max_output_tokens, request.timeout_s)


def test_a_stream_is_numbered_and_ends_as_it_is_told() -> None:
    """The chunks decode as the chunks of a real stream do."""
    chunks = factories.stream_of("Hel", "lo")
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert chunks[1:3] == [TextChunk(seq=1, text="Hel"), TextChunk(seq=2, text="lo")]
    assert isinstance(chunks[3], DoneChunk)
    thinking = factories.stream_of("Hi", reasoning=["Hm."])
    assert thinking[1:3] == [ReasoningChunk(seq=1, text="Hm."), TextChunk(seq=2, text="Hi")]
    *_, last = factories.stream_of("Hel", ended_by=factories.ErrorChunkFactory.build())
    assert isinstance(last, ErrorChunk)
    assert last.seq == 2
    assert msgspec.json.decode(msgspec.json.encode(chunks), type=list[StreamChunk]) == chunks
