"""The events of a reply: admitted, started, reasoning and text; the last is either finished or failed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

from parley.chat.errors import ChatError

_Count = Annotated[int, Meta(ge=0)]


class FinishReason(StrEnum):
    """Why the model stopped. `unknown`: the upstream reported the end, but no known reason. The list is closed."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    UNKNOWN = "unknown"


class UsageSource(StrEnum):
    """Where the token counts come from: the upstream, Parley's estimate from the pieces it received, or none.

    The list is closed.
    """

    UPSTREAM = "upstream"
    ESTIMATE = "estimate"
    NONE = "none"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one request. Unknown counts are null, never 0."""

    input_tokens: Annotated[_Count | None, Meta(description="Tokens of the prompt, including the system prompt.")]
    output_tokens: Annotated[_Count | None, Meta(description="Tokens of the answer, including reasoning.")]
    total_tokens: Annotated[_Count | None, Meta(description="Input and output tokens together.")]
    cached_input_tokens: Annotated[
        _Count | None, Meta(description="Input tokens that came from the upstream's cache.")
    ] = None
    reasoning_tokens: Annotated[_Count | None, Meta(description="Output tokens that the model used for reasoning.")] = (
        None
    )
    source: UsageSource

    @classmethod
    def estimate(cls, output_tokens: int) -> Self:
        """Return an estimate, for an answer whose tokens the upstream did not count."""
        return cls(input_tokens=None, output_tokens=output_tokens, total_tokens=None, source=UsageSource.ESTIMATE)

    @classmethod
    def sum(cls, usages: Sequence[Usage]) -> Usage:
        """Add the usages of several model calls.

        If a count is unknown for one call, it is unknown in the sum, except `output_tokens`, which adds the known ones.
        """
        if len(usages) == 1:
            return usages[0]
        sources = {usage.source for usage in usages}
        if sources <= {UsageSource.NONE}:
            return NO_USAGE
        return cls(
            input_tokens=_sum([usage.input_tokens for usage in usages]),
            output_tokens=sum(usage.output_tokens or 0 for usage in usages),
            total_tokens=_sum([usage.total_tokens for usage in usages]),
            cached_input_tokens=_sum([usage.cached_input_tokens for usage in usages]),
            reasoning_tokens=_sum([usage.reasoning_tokens for usage in usages]),
            source=sources.pop() if len(sources) == 1 else UsageSource.ESTIMATE,
        )


def _sum(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else sum(filter(None, counts))


NO_USAGE: Final = Usage(input_tokens=None, output_tokens=None, total_tokens=None, source=UsageSource.NONE)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds, from when Parley accepted the request."""

    first_token_ms: Annotated[
        _Count | None,
        Meta(description="Milliseconds to the first text; reasoning does not count. Null if no text arrived."),
    ]
    total_ms: Annotated[_Count, Meta(description="Milliseconds to the end of the answer.")]


class ReplyAdmitted(msgspec.Struct, frozen=True):
    """The reply has got a place, and Parley sends the request to the model."""


class ReplyStarted(msgspec.Struct, frozen=True):
    """The model has begun to answer; precedes the first piece, or the end if the answer is empty."""

    model: str


class ReplyReasoning(msgspec.Struct, frozen=True):
    """A piece of the model's reasoning."""

    text: str


class ReplyText(msgspec.Struct, frozen=True):
    """A piece of the answer's text, as the model sent it."""

    text: str


class ReplyFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is complete, or the model reported why it is not."""

    finish_reason: FinishReason
    usage: Usage
    timing: Timing


class ReplyFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer failed, before or after its start."""

    error: ChatError
    usage: Usage
    timing: Timing


Event = ReplyAdmitted | ReplyStarted | ReplyReasoning | ReplyText | ReplyFinished | ReplyFailed
