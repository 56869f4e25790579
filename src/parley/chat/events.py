"""Owns the events of a reply: started, text, then exactly one of finished or failed."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from parley.chat.errors import ChatError


class FinishReason(StrEnum):
    """Why the model stopped, in the upstream's own words."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


class UsageSource(StrEnum):
    """Who counted the tokens: the upstream, Parley by the deltas it saw, or nobody."""

    UPSTREAM = "upstream"
    ESTIMATE = "estimate"
    NONE = "none"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request; a number that nobody knows is `None`, never 0."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    source: UsageSource = UsageSource.NONE


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds since the request was accepted; `first_token_ms` is `None` where no text came."""

    first_token_ms: int | None
    total_ms: int


class ReplyAdmitted(msgspec.Struct, frozen=True):
    """There is a place for the reply; the model is being asked."""


class ReplyStarted(msgspec.Struct, frozen=True):
    """The model has begun to answer; comes right before the first text."""

    model: str


class ReplyText(msgspec.Struct, frozen=True):
    """A piece of the answer, as the model sent it."""

    text: str


class ReplyFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is whole, or the model said why it is not."""

    finish_reason: FinishReason
    usage: Usage
    timing: Timing


class ReplyFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer could not be given, or not to its end."""

    error: ChatError
    usage: Usage
    timing: Timing


Event = ReplyAdmitted | ReplyStarted | ReplyText | ReplyFinished | ReplyFailed
