"""Owns what a consumer's tests need: factories for the shapes on the wire, and their fixtures.

Load it as a pytest plugin with `pytest_plugins = ["parley.testing"]`; it wants the extra `parley[testing]`. Each
factory has a fixture of its own name, such as `chat_request_factory`.
`ChatRequestFactory.seed_random(1)` makes what a factory builds the same in each run.
"""

from random import Random

import msgspec
from polyfactory import PostGenerated
from polyfactory.factories.msgspec_factory import MsgspecFactory
from polyfactory.pytest_plugin import register_fixture

from parley.chat.errors import EXPLANATIONS, ChatError, ErrorCode
from parley.chat.events import FinishReason, Timing, Usage, UsageSource
from parley.web.schema import (
    ChatRequest,
    ChatResponse,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    HistoryTurn,
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


def _correlation_id(random: Random) -> str:
    return f"{random.getrandbits(128):032x}"


def _usage(random: Random) -> Usage:
    read, written = random.randint(1, 4000), random.randint(1, 2000)
    return Usage(input_tokens=read, output_tokens=written, total_tokens=read + written, source=UsageSource.UPSTREAM)


def _timing(random: Random) -> Timing:
    first_token_ms = random.randint(50, 2000)
    return Timing(first_token_ms=first_token_ms, total_ms=first_token_ms + random.randint(0, 20_000))


@register_fixture
class HistoryTurnFactory(MsgspecFactory[HistoryTurn]):
    """Earlier turns."""

    @classmethod
    def content(cls) -> str:
        """Say something."""
        return cls.__faker__.sentence()


@register_fixture
class ChatRequestFactory(MsgspecFactory[ChatRequest]):
    """Requests that a Parley with default settings accepts."""

    @classmethod
    def message(cls) -> str:
        """Ask something."""
        return cls.__faker__.sentence()

    @classmethod
    def history(cls) -> list[HistoryTurn]:
        """Begin with one exchange."""
        return [
            HistoryTurn("user", cls.__faker__.sentence()),
            HistoryTurn("assistant", cls.__faker__.sentence()),
        ]

    @classmethod
    def max_output_tokens(cls) -> int:
        """Stay below the ceiling."""
        return cls.__random__.randint(1, 2000)

    @classmethod
    def timeout_s(cls) -> float:
        """Stay below the ceiling."""
        return cls.__random__.uniform(1, 30)


@register_fixture
class ChatResponseFactory(MsgspecFactory[ChatResponse]):
    """Whole answers."""

    @classmethod
    def text(cls) -> str:
        """Say something."""
        return cls.__faker__.sentence()

    @classmethod
    def usage(cls) -> Usage:
        """Count what adds up."""
        return _usage(cls.__random__)

    @classmethod
    def timing(cls) -> Timing:
        """Take longer to the end than to the beginning."""
        return _timing(cls.__random__)

    @classmethod
    def correlation_id(cls) -> str:
        """Look like Parley's own."""
        return _correlation_id(cls.__random__)


def _explained(name: str, values: dict[str, ErrorCode]) -> object:
    return getattr(EXPLANATIONS[values["code"]], name)


@register_fixture
class ErrorResponseFactory(MsgspecFactory[ErrorResponse]):
    """Failures; what they say is what Parley says for their code."""

    error = PostGenerated(_explained)
    detail = PostGenerated(_explained)
    action = PostGenerated(_explained)
    retryable = PostGenerated(_explained)

    @classmethod
    def correlation_id(cls) -> str:
        """Look like Parley's own."""
        return _correlation_id(cls.__random__)

    @classmethod
    def retry_after_s(cls) -> int | None:
        """Leave it open."""
        return None


@register_fixture
class StartChunkFactory(MsgspecFactory[StartChunk]):
    """The chunk that begins a stream."""

    seq = 0

    @classmethod
    def correlation_id(cls) -> str:
        """Look like Parley's own."""
        return _correlation_id(cls.__random__)


@register_fixture
class TextChunkFactory(MsgspecFactory[TextChunk]):
    """Pieces of an answer."""

    @classmethod
    def text(cls) -> str:
        """Say something."""
        return cls.__faker__.sentence()


@register_fixture
class DoneChunkFactory(MsgspecFactory[DoneChunk]):
    """The chunk that ends an answer."""

    @classmethod
    def usage(cls) -> Usage:
        """Count what adds up."""
        return _usage(cls.__random__)

    @classmethod
    def timing(cls) -> Timing:
        """Take longer to the end than to the beginning."""
        return _timing(cls.__random__)


@register_fixture
class ErrorChunkFactory(MsgspecFactory[ErrorChunk]):
    """The chunk that ends a broken answer."""

    @classmethod
    def error(cls) -> ErrorResponse:
        """Break as an answer can that has begun."""
        return ErrorResponse.of(ChatError(cls.__random__.choice(_BREAKS)), _correlation_id(cls.__random__))

    @classmethod
    def usage(cls) -> Usage:
        """Count what adds up."""
        return _usage(cls.__random__)


def stream_of(*texts: str, ended_by: DoneChunk | ErrorChunk | None = None) -> list[StreamChunk]:
    """Return the chunks of a whole stream, numbered as Parley numbers them."""
    last = ended_by or DoneChunkFactory.build(finish_reason=FinishReason.STOP)
    chunks: list[StreamChunk] = [StartChunkFactory.build()]
    chunks += [TextChunkFactory.build(seq=number, text=text) for number, text in enumerate(texts, start=1)]
    return [*chunks, msgspec.structs.replace(last, seq=len(chunks))]
