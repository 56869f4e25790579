"""Factories for everything on the wire.

Each has a pytest fixture with its name in snake case, such as `chat_request_factory`.
`ChatRequestFactory.seed_random(1)` makes a factory build the same values in each run.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET
from polyfactory import PostGenerated
from polyfactory.factories.msgspec_factory import MsgspecFactory

from parley.chat.errors import EXPLANATIONS, ChatError, ErrorCode, Explanation
from parley.chat.events import FinishReason, Timing, Usage, UsageSource
from parley.wire.schema import (
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

# Errors that can end an answer after it has begun.
_BREAKS = [
    ErrorCode.UPSTREAM_TRUNCATED,
    ErrorCode.UPSTREAM_ERROR,
    ErrorCode.UPSTREAM_IDLE_TIMEOUT,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.INTERNAL,
]


# For a code that only a later version of Parley knows.
_UNKNOWN: Final = Explanation("Something failed.", "The reason is new.", "Retry in a moment.", retryable=True)

T = TypeVar("T", bound=msgspec.Struct)


class _Factory(MsgspecFactory[T]):
    """Values for fields that several types share."""

    __is_base_factory__ = True

    @classmethod
    def text(cls) -> str:
        """Return a sentence."""
        return cls.__faker__.sentence()

    @classmethod
    def correlation_id(cls) -> str:
        """Return an ID in the form that Parley generates."""
        return f"{cls.__random__.getrandbits(128):032x}"

    @classmethod
    def usage(cls) -> Usage:
        """Return counts that add up."""
        read, written = cls.__random__.randint(1, 4000), cls.__random__.randint(1, 2000)
        return Usage(input_tokens=read, output_tokens=written, total_tokens=read + written, source=UsageSource.UPSTREAM)

    @classmethod
    def timing(cls) -> Timing:
        """Return a total time that is not shorter than the time to the first token."""
        first_token_ms = cls.__random__.randint(50, 2000)
        return Timing(first_token_ms=first_token_ms, total_ms=first_token_ms + cls.__random__.randint(0, 20_000))


class HistoryTurnFactory(_Factory[HistoryTurn]):
    """Builds earlier turns of a conversation."""

    @classmethod
    def content(cls) -> str:
        """Return a sentence."""
        return cls.text()


class ChatRequestFactory(_Factory[ChatRequest]):
    """Builds requests that Parley accepts with default settings."""

    @classmethod
    def message(cls) -> str:
        """Return a sentence."""
        return cls.text()

    @classmethod
    def history(cls) -> list[HistoryTurn]:
        """Return one turn of the user and one of the assistant."""
        return [HistoryTurn("user", cls.text()), HistoryTurn("assistant", cls.text())]

    @classmethod
    def max_output_tokens(cls) -> int:
        """Return a value up to the default ceiling."""
        return cls.__random__.randint(1, 2000)

    @classmethod
    def timeout_s(cls) -> float:
        """Return a value up to the default ceiling."""
        return cls.__random__.uniform(1, 30)


class ChatResponseFactory(_Factory[ChatResponse]):
    """Builds complete answers."""


def _explained(name: str, values: dict[str, ErrorCode]) -> object:
    return getattr(EXPLANATIONS.get(values["code"], _UNKNOWN), name)


class ErrorResponseFactory(_Factory[ErrorResponse]):
    """Builds errors with the texts that Parley sends for their code; for an unknown code, pass the texts too."""

    error = PostGenerated(_explained)
    detail = PostGenerated(_explained)
    action = PostGenerated(_explained)
    retryable = PostGenerated(_explained)
    retry_after_s = None
    partial = UNSET


class StartChunkFactory(_Factory[StartChunk]):
    """Builds the first chunk of a stream."""

    seq = 0


class ReasoningChunkFactory(_Factory[ReasoningChunk]):
    """Builds chunks of a model's reasoning."""


class TextChunkFactory(_Factory[TextChunk]):
    """Builds chunks of an answer's text."""


class DoneChunkFactory(_Factory[DoneChunk]):
    """Builds the last chunk of a complete answer."""


class ErrorChunkFactory(_Factory[ErrorChunk]):
    """Builds the last chunk of an answer that failed."""

    @classmethod
    def error(cls) -> ErrorResponse:
        """Return an error that can occur after an answer has begun."""
        return ErrorResponse.of(ChatError(cls.__random__.choice(_BREAKS)), cls.correlation_id())


def stream_of(
    *texts: str, reasoning: Sequence[str] = (), ended_by: DoneChunk | ErrorChunk | None = None
) -> list[StreamChunk]:
    """Return the chunks of a whole stream, numbered as Parley numbers them; the reasoning precedes the texts."""
    last = ended_by or DoneChunkFactory.build(finish_reason=FinishReason.STOP)
    chunks: list[StreamChunk] = [StartChunkFactory.build()]
    chunks += [ReasoningChunkFactory.build(text=text) for text in reasoning]
    chunks += [TextChunkFactory.build(text=text) for text in texts]
    return [msgspec.structs.replace(chunk, seq=number) for number, chunk in enumerate([*chunks, last])]
