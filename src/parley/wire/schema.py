"""The shapes on the wire: requests, chunks, responses and errors, as the contract publishes them."""

from typing import Annotated, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason, Timing, Usage
from parley.chat.messages import Message, Prompt, Role
from parley.settings import LONGEST_S, MOST_OUTPUT_TOKENS, Settings

NumberT = TypeVar("NumberT", int, float)

MAX_MESSAGE_CHARACTERS: Final = 32_000
MAX_HISTORY_TURNS: Final = 200
MAX_BODY_BYTES: Final = 1 << 20

_Seq = Annotated[int, Meta(ge=0, description="Number of the chunk in the stream, from 0.")]
_Model = Annotated[str, Meta(description="The model that answers, which may be the fallback.")]
_CorrelationId = Annotated[str, Meta(description="The ID of the request in Parley's logs; quote it to the operator.")]

# The characters that Python or JavaScript treats as blank. Not `\s`: it matches different characters in each.
_BLANK: Final = r"\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"

_DEFAULTS: Final = Settings()
_CONTENT: Final = f"The text of the turn: at most {MAX_MESSAGE_CHARACTERS:,} characters, no NUL. It may be empty."

# In servers written in C, a NUL would silently end the text.
_NO_NUL: Final = r"^[^\x00]*$"
NOT_BLANK_NO_NUL: Final = rf"^[{_BLANK}]*[^{_BLANK}\x00][^\x00]*$"

_REFUSED_ANSWERS: Final = {ErrorCode.GUARDRAIL_TRIPPED, ErrorCode.CONTENT_FILTERED}


class HistoryTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An earlier turn of the conversation."""

    role: Annotated[Role, Meta(description="Who wrote the turn.")]
    content: Annotated[str, Meta(max_length=MAX_MESSAGE_CHARACTERS, pattern=_NO_NUL, description=_CONTENT)]


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message to answer, with the earlier turns of the conversation; Parley stores nothing."""

    message: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=MAX_MESSAGE_CHARACTERS,
            pattern=NOT_BLANK_NO_NUL,
            description=f"The message to answer: 1 to {MAX_MESSAGE_CHARACTERS:,} characters, not blank, no NUL.",
        ),
    ]
    history: Annotated[
        Annotated[list[HistoryTurn], Meta(max_length=MAX_HISTORY_TURNS)] | None,
        Meta(
            description=f"Earlier turns of `user` and `assistant`, oldest first; at most {MAX_HISTORY_TURNS}.",
        ),
    ] = msgspec.field(default_factory=list)
    max_output_tokens: (
        Annotated[
            Annotated[int, Meta(ge=1, le=MOST_OUTPUT_TOKENS)] | None,
            Meta(
                description="The maximum number of tokens in the answer, a whole number. The default, which is also "
                f"the ceiling, is {_DEFAULTS.max_output_tokens:,} unless the operator sets another. Parley refuses "
                "larger values.",
            ),
        ]
        | UnsetType
    ) = UNSET
    timeout_s: (
        Annotated[
            Annotated[float, Meta(gt=0, le=LONGEST_S)] | None,
            Meta(
                description="Seconds for the whole answer. The default, which is also the ceiling, is "
                f"{_DEFAULTS.request_timeout_s:g} unless the operator sets another. Parley refuses larger values.",
            ),
        ]
        | UnsetType
    ) = UNSET

    include_reasoning: Annotated[
        bool | None, Meta(description="Whether to send the model's reasoning, if the upstream provides it.")
    ] = False

    def to_prompt(self, settings: Settings, caller: str) -> Prompt:
        """Return the prompt for the domain, or raise `ChatError` if a value is above its ceiling."""
        return Prompt(
            messages=[
                *(Message(turn.role, turn.content) for turn in self.history or ()),
                Message("user", self.message),
            ],
            max_output_tokens=_limited("max_output_tokens", self.max_output_tokens, settings.max_output_tokens),
            timeout_s=_limited("timeout_s", self.timeout_s, settings.request_timeout_s),
            include_reasoning=bool(self.include_reasoning),
            caller=caller,
        )


def _limited(name: str, value: NumberT | UnsetType | None, ceiling: NumberT) -> NumberT:
    """Return the value, which defaults to its ceiling, or raise `ChatError` if it is above the ceiling."""
    if value is None or value is UNSET:
        return ceiling
    if value > ceiling:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail=f"`/{name}` must be at most {ceiling:,.9g}.")
    return value


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What failed, why, and what to do: the body of every HTTP error, and part of the `error` chunk."""

    code: ErrorCode
    error: Annotated[str, Meta(description="What happened.")]
    detail: Annotated[str, Meta(description="Why.")]
    action: Annotated[str, Meta(description="What to do.")]
    correlation_id: _CorrelationId
    retryable: Annotated[bool, Meta(description="Whether the same request may succeed if it is sent again.")]
    retry_after_s: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Seconds to wait before a retry; null if unknown.")
    ]
    partial: (
        Annotated[
            str,
            Meta(
                description="The text that arrived before the failure. Only in responses of `/chat/complete`; absent "
                "if no text arrived, for `content_filtered`, and if the operator's agent has guardrails."
            ),
        ]
        | UnsetType
    ) = UNSET

    @classmethod
    def of(cls, error: ChatError, correlation_id: str, partial: str | UnsetType = UNSET) -> "ErrorResponse":
        """Return the response for an error of the domain."""
        return cls(
            code=error.code,
            correlation_id=correlation_id,
            retry_after_s=error.retry_after_s,
            partial=partial,
            **error.explanation._asdict(),
        )


def partial_text(code: ErrorCode, text: str) -> str | UnsetType:
    """Return the text that an error may show: none if the operator's guardrail or the upstream refused the answer."""
    return UNSET if not text or code in _REFUSED_ANSWERS else text


class StartChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="start"):
    """The model has begun to answer."""

    seq: _Seq
    correlation_id: _CorrelationId
    model: _Model


class ReasoningChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """A piece of the model's reasoning; sent only if the request sets `include_reasoning`."""

    requested_by: ClassVar[str] = "include_reasoning"
    seq: _Seq
    text: Annotated[str, Meta(description="The next piece of the reasoning.")]


class TextChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of the answer; the pieces, joined, are the whole answer."""

    seq: _Seq
    text: Annotated[str, Meta(description="The next piece of the answer.")]


class DoneChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="done"):
    """The answer is complete, or `finish_reason` says why it is not. Nothing follows this chunk."""

    seq: _Seq
    finish_reason: FinishReason
    usage: Usage
    timing: Timing


class ErrorChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """The answer is incomplete; if this is the only chunk, no answer began. Nothing follows this chunk."""

    seq: _Seq
    error: ErrorResponse
    usage: Usage


StreamChunk = StartChunk | ReasoningChunk | TextChunk | DoneChunk | ErrorChunk


class ChatResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A complete answer."""

    text: Annotated[str, Meta(description="The whole answer.")]
    reasoning: (
        Annotated[str, Meta(description="The model's reasoning; only for requests with `include_reasoning`.")]
        | UnsetType
    ) = UNSET
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    model: _Model
    correlation_id: _CorrelationId


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether Parley would answer chats now; if not, the code of the error that it would return."""

    status: Annotated[
        Literal["live", "ready", "not_ready"],
        Meta(description="`live` for liveness; `ready` or `not_ready` for readiness. The list is closed."),
    ]
    reason: Annotated[
        ErrorCode | None,
        Meta(description="The error code that a chat would get; null if it would get none."),
    ]
