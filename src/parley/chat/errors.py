"""The error codes and, for each code, what happened, why, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple, Self


class ErrorCode(StrEnum):
    """Why a request failed. The list is open: if you do not know a code, act on `retryable` and the HTTP status."""

    INVALID_REQUEST = "invalid_request"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNAUTHORIZED = "unauthorized"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"
    UPSTREAM_AUTH = "upstream_auth"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_FIRST_TOKEN_TIMEOUT = "upstream_first_token_timeout"  # noqa: S105  # not a password
    UPSTREAM_IDLE_TIMEOUT = "upstream_idle_timeout"
    REQUEST_TIMEOUT = "request_timeout"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CONTENT_FILTERED = "content_filtered"
    GUARDRAIL_TRIPPED = "guardrail_tripped"
    TOO_MANY_TURNS = "too_many_turns"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        """Return a code for a value that only a later version of Parley knows, so that a client can decode it."""
        if not isinstance(value, str):
            return None
        code = str.__new__(cls, value)
        code._name_ = code._value_ = value
        return code


class Explanation(NamedTuple):
    """An error in three sentences, and whether the same request may succeed if it is sent again."""

    error: str
    detail: str
    action: str
    retryable: bool


class ChatError(Exception):
    """A named failure of a request.

    `detail` and `retryable` replace the code's defaults if the raiser knows better. A `detail` must be Parley's own
    text, never the text of the upstream, an exception or a message. `reason` is one word that distinguishes causes with
    the same code; `upstream_status` is the HTTP status of the upstream's response. Both are logged, but not sent to the
    client. `was_sent` is false if the request certainly did not reach the upstream. `is_transient` means that the
    upstream's failure may pass within a second or two.
    """

    def __init__(  # noqa: PLR0913  # all are keywords
        self,
        code: ErrorCode,
        *,
        detail: str | None = None,
        retryable: bool | None = None,
        retry_after_s: int | None = None,
        reason: str | None = None,
        upstream_status: int | None = None,
        was_sent: bool = True,
        is_transient: bool = False,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.explanation = EXPLANATIONS[code]
        if detail is not None:
            self.explanation = self.explanation._replace(detail=detail)
        if retryable is not None:
            self.explanation = self.explanation._replace(retryable=retryable)
        self.retry_after_s = retry_after_s
        self.reason = reason
        self.upstream_status = upstream_status
        self.was_sent = was_sent
        self.is_transient = is_transient


EXPLANATIONS: Final[Mapping[ErrorCode, Explanation]] = {
    ErrorCode.INVALID_REQUEST: Explanation(
        "The request is invalid.",
        "The request body does not match the schema.",
        "Correct the request. The contract is at /schema/openapi.json.",
        retryable=False,
    ),
    ErrorCode.NOT_FOUND: Explanation(
        "Not found.",
        "No operation has this path.",
        "Send chats to POST /chat or POST /chat/complete. The contract is at /schema/openapi.json.",
        retryable=False,
    ),
    ErrorCode.METHOD_NOT_ALLOWED: Explanation(
        "The method is not allowed.",
        "This path does not support the method.",
        "Use a method that the Allow header lists.",
        retryable=False,
    ),
    ErrorCode.PAYLOAD_TOO_LARGE: Explanation(
        "The request is too large.",
        "The request body is larger than 1 MiB.",
        "Shorten the message, or send fewer turns of history.",
        retryable=False,
    ),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: Explanation(
        "The media type is not supported.",
        "The Content-Type is not application/json.",
        "Send a JSON body with the header `Content-Type: application/json`.",
        retryable=False,
    ),
    ErrorCode.UNAUTHORIZED: Explanation(
        "The request is not authorized.",
        "Missing or unknown API key.",
        "Send a key in the header `Authorization: Bearer <key>`. The operator issues keys.",
        retryable=False,
    ),
    ErrorCode.RATE_LIMITED: Explanation(
        "Too many requests.",
        "A quota is used up.",
        "Wait as long as the Retry-After header says, then retry.",
        retryable=True,
    ),
    ErrorCode.OVERLOADED: Explanation(
        "Parley is overloaded.",
        "Parley is serving as many streams as it allows.",
        "Wait as long as the Retry-After header says, then retry.",
        retryable=True,
    ),
    ErrorCode.SHUTTING_DOWN: Explanation(
        "The request was not completed.",
        "This Parley is shutting down.",
        "Retry. Another instance, or the restarted one, answers.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_AUTH: Explanation(
        "The upstream refused the request.",
        "The upstream rejected Parley's credentials.",
        "Tell the operator: OPENAI_API_KEY is wrong, or is not allowed to use this model.",
        retryable=False,
    ),
    ErrorCode.UPSTREAM_RATE_LIMITED: Explanation(
        "The upstream refused the request.",
        "Parley's account has reached a limit of the upstream.",
        "Wait as long as the Retry-After header says, if there is one, then retry.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_UNREACHABLE: Explanation(
        "The upstream is unreachable.",
        "Parley could not connect to the upstream, or the connection broke before a response.",
        "Retry in a moment. If the error persists, the operator should check OPENAI_BASE_URL and the upstream.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_ERROR: Explanation(
        "The model did not answer.",
        "The upstream failed.",
        "Retry in a moment. If the error persists, the operator should check the upstream.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_TRUNCATED: Explanation(
        "The answer is incomplete.",
        "The upstream's stream ended without a finish reason.",
        "Discard the partial answer, or keep it as incomplete. Retry to get a complete answer.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT: Explanation(
        "The model did not answer.",
        "The first token did not arrive in time.",
        "Retry, or shorten the message. The operator can raise PARLEY_FIRST_TOKEN_TIMEOUT_S.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_IDLE_TIMEOUT: Explanation(
        "The answer is incomplete.",
        "The upstream stopped sending in the middle of the answer.",
        "Discard the partial answer, or keep it as incomplete. Retry to get a complete answer.",
        retryable=True,
    ),
    ErrorCode.REQUEST_TIMEOUT: Explanation(
        "The request timed out.",
        "The time for the request ran out before the model finished.",
        "Ask for a shorter answer with `max_output_tokens`, or allow more time with `timeout_s`.",
        retryable=True,
    ),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Explanation(
        "The conversation is too long.",
        "The message and its history exceed the model's context.",
        "Shorten the message, or send fewer turns of history.",
        retryable=False,
    ),
    ErrorCode.CONTENT_FILTERED: Explanation(
        "The upstream refused the message.",
        "The upstream's content filter does not allow it.",
        "Change the message or its history.",
        retryable=False,
    ),
    ErrorCode.GUARDRAIL_TRIPPED: Explanation(
        "The request was refused.",
        "A guardrail of the operator's agent does not allow the message, or the answer to it.",
        "Change the message. The operator decides what the guardrails allow.",
        retryable=False,
    ),
    ErrorCode.TOO_MANY_TURNS: Explanation(
        "The agent did not finish.",
        "The agent called tools or other agents more often than one request allows.",
        "Ask for less at once. If the error persists, the operator should check the agent.",
        retryable=False,
    ),
    ErrorCode.INTERNAL: Explanation(
        "Parley failed.",
        "An unexpected error occurred. Parley logged it under the correlation id.",
        "Report the correlation id to the operator.",
        retryable=False,
    ),
}
