"""Owns what a consumer's tests need: factories for the shapes on the wire, and fixtures.

Load it as a pytest plugin with `pytest_plugins = ["parley.testing"]`; it wants the extra `parley[testing]`. Each
factory has a fixture of its own name, such as `chat_request_factory`; `fake_parley` is a `parley.fake.FakeParley`.
`ChatRequestFactory.seed_random(1)` makes what a factory builds the same in each run.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
import pytest
from polyfactory import PostGenerated
from polyfactory.factories.msgspec_factory import MsgspecFactory
from polyfactory.pytest_plugin import register_fixture

from parley.chat.errors import EXPLANATIONS, ChatError, ErrorCode
from parley.chat.events import FinishReason, Timing, Usage, UsageSource
from parley.fake import FakeParley
from parley.web.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    HistoryTurn,
    ReasoningChunk,
    StartChunk,
    StreamChunk,
    TextChunk,
)

# What can still go wrong once an answer has begun.
_BREAKS = [
    ErrorCode.UPSTREAM_TRUNCATED,
    ErrorCode.UPSTREAM_ERROR,
    ErrorCode.UPSTREAM_IDLE_TIMEOUT,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.INTERNAL,
]


T = TypeVar("T", bound=msgspec.Struct)


class _Factory(MsgspecFactory[T]):
    """What the fields hold that several shapes have in common."""

    __is_base_factory__ = True

    @classmethod
    def text(cls) -> str:
        """Say something."""
        return cls.__faker__.sentence()

    @classmethod
    def correlation_id(cls) -> str:
        """Look like Parley's own."""
        return f"{cls.__random__.getrandbits(128):032x}"

    @classmethod
    def usage(cls) -> Usage:
        """Count what adds up."""
        read, written = cls.__random__.randint(1, 4000), cls.__random__.randint(1, 2000)
        return Usage(input_tokens=read, output_tokens=written, total_tokens=read + written, source=UsageSource.UPSTREAM)

    @classmethod
    def timing(cls) -> Timing:
        """Take longer to the end than to the beginning."""
        first_token_ms = cls.__random__.randint(50, 2000)
        return Timing(first_token_ms=first_token_ms, total_ms=first_token_ms + cls.__random__.randint(0, 20_000))


@register_fixture
class HistoryTurnFactory(_Factory[HistoryTurn]):
    """Earlier turns."""

    @classmethod
    def content(cls) -> str:
        """Say something."""
        return cls.text()


@register_fixture
class ChatRequestFactory(_Factory[ChatRequest]):
    """Requests that a Parley with default settings accepts."""

    @classmethod
    def message(cls) -> str:
        """Ask something."""
        return cls.text()

    @classmethod
    def history(cls) -> list[HistoryTurn]:
        """Begin with one exchange."""
        return [HistoryTurn("user", cls.text()), HistoryTurn("assistant", cls.text())]

    @classmethod
    def max_output_tokens(cls) -> int:
        """Stay below the ceiling."""
        return cls.__random__.randint(1, 2000)

    @classmethod
    def timeout_s(cls) -> float:
        """Stay below the ceiling."""
        return cls.__random__.uniform(1, 30)


@register_fixture
class ChatResponseFactory(_Factory[ChatResponse]):
    """Whole answers."""


def _explained(name: str, values: dict[str, ErrorCode]) -> object:
    return getattr(EXPLANATIONS[values["code"]], name)


@register_fixture
class ErrorResponseFactory(_Factory[ErrorResponse]):
    """Failures; what they say is what Parley says for their code."""

    error = PostGenerated(_explained)
    detail = PostGenerated(_explained)
    action = PostGenerated(_explained)
    retryable = PostGenerated(_explained)
    retry_after_s = None


@register_fixture
class StartChunkFactory(_Factory[StartChunk]):
    """The chunk that begins a stream."""

    seq = 0


@register_fixture
class ReasoningChunkFactory(_Factory[ReasoningChunk]):
    """Pieces of what a model thinks."""


@register_fixture
class TextChunkFactory(_Factory[TextChunk]):
    """Pieces of an answer."""


@register_fixture
class DoneChunkFactory(_Factory[DoneChunk]):
    """The chunk that ends an answer."""


@register_fixture
class ErrorChunkFactory(_Factory[ErrorChunk]):
    """The chunk that ends a broken answer."""

    @classmethod
    def error(cls) -> ErrorResponse:
        """Break as an answer can that has begun."""
        return ErrorResponse.of(ChatError(cls.__random__.choice(_BREAKS)), cls.correlation_id())


def stream_of(
    *texts: str, reasoning: Sequence[str] = (), ended_by: DoneChunk | ErrorChunk | None = None
) -> list[StreamChunk]:
    """Return the chunks of a whole stream, numbered as Parley numbers them; the thoughts come before the texts."""
    last = ended_by or DoneChunkFactory.build(finish_reason=FinishReason.STOP)
    chunks: list[StreamChunk] = [StartChunkFactory.build()]
    chunks += [ReasoningChunkFactory.build(text=text) for text in reasoning]
    chunks += [TextChunkFactory.build(text=text) for text in texts]
    return [msgspec.structs.replace(chunk, seq=number) for number, chunk in enumerate([*chunks, last])]


@pytest.fixture
def fake_parley() -> FakeParley:
    """Stand in for Parley: `httpx.Client(transport=fake_parley, base_url="http://parley")`."""
    return FakeParley()
