"""The shape of the response to `GET /info`: the model, the limits in force, and the version."""

from typing import Annotated

import msgspec
from msgspec import Meta

from parley.settings import Settings
from parley.wire.schema import MAX_BODY_BYTES, MAX_HISTORY_TURNS, MAX_MESSAGE_CHARACTERS


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in force. Parley refuses requests that exceed one of the first five; the others are quotas.

    Each Parley process counts the quotas for itself.
    """

    max_output_tokens: Annotated[int, Meta(description="The ceiling, and the default, of `max_output_tokens`.")]
    timeout_s: Annotated[float, Meta(description="The ceiling, and the default, of `timeout_s`.")]
    message_characters: Annotated[
        int, Meta(description="The maximum characters of `message`, and of each earlier turn.")
    ]
    history_turns: Annotated[int, Meta(description="The maximum turns in `history`.")]
    body_bytes: Annotated[int, Meta(description="The maximum bytes of the request body.")]
    requests_per_minute: Annotated[int | None, Meta(description="Requests per minute, per caller; null if unlimited.")]
    open_requests: Annotated[int | None, Meta(description="Open requests per caller; null if unlimited.")]
    tokens_per_minute: Annotated[
        int | None,
        Meta(description="Input and output tokens per minute, of all callers together; null if unlimited."),
    ]

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Return the limits that these settings set."""
        return cls(
            max_output_tokens=settings.max_output_tokens,
            timeout_s=settings.request_timeout_s,
            message_characters=MAX_MESSAGE_CHARACTERS,
            history_turns=MAX_HISTORY_TURNS,
            body_bytes=MAX_BODY_BYTES,
            requests_per_minute=settings.requests_per_minute,
            open_requests=settings.max_streams_per_caller,
            tokens_per_minute=settings.tokens_per_minute,
        )


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """The model, the limits in force, and the version."""

    model: Annotated[str, Meta(description="The model that answers, unless it fails.")]
    fallback_model: Annotated[
        str | None,
        Meta(description="The model that answers if the first one fails before its first token; null if none."),
    ]
    limits: Limits
    version: Annotated[str, Meta(description="The version of Parley.")]
