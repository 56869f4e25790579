"""Owns the errors by name: the closed list of codes and, for each, what happened, why, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class ErrorCode(StrEnum):
    """Every way in which a request can fail. The list is closed: clients may switch on it."""

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
    UPSTREAM_FIRST_TOKEN_TIMEOUT = "upstream_first_token_timeout"  # noqa: S105  # no password
    UPSTREAM_IDLE_TIMEOUT = "upstream_idle_timeout"
    REQUEST_TIMEOUT = "request_timeout"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CONTENT_FILTERED = "content_filtered"
    GUARDRAIL_TRIPPED = "guardrail_tripped"
    TOO_MANY_TURNS = "too_many_turns"
    INTERNAL = "internal"


class Explanation(NamedTuple):
    """An error in three sentences, and whether the same request may succeed if it is sent again."""

    error: str
    detail: str
    action: str
    retryable: bool


class ChatError(Exception):
    """A named failure of a request.

    `detail` and `retryable` stand in for the code's usual ones where the raiser knows better; a detail must be our own
    words, never text of the upstream, of an exception or of a message. `reason` tells apart, in one word, what the code
    does not; `upstream_status` is the HTTP status that the upstream answered with. Both are logged, not published.
    `was_sent` is false if the request certainly did not reach the upstream. `is_transient` says that the upstream's
    failure may pass within a second or two.
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
        "The request was refused.",
        "It does not have the form that the contract asks for.",
        "Correct the request; the contract is at /schema/openapi.json.",
        retryable=False,
    ),
    ErrorCode.NOT_FOUND: Explanation(
        "There is nothing here.",
        "No operation has this path.",
        "Send chats to POST /chat or POST /chat/complete; the contract is at /schema/openapi.json.",
        retryable=False,
    ),
    ErrorCode.METHOD_NOT_ALLOWED: Explanation(
        "The method is not allowed.",
        "This path answers other methods only; the Allow header names them.",
        "Use a method that the Allow header names.",
        retryable=False,
    ),
    ErrorCode.PAYLOAD_TOO_LARGE: Explanation(
        "The request was refused.",
        "Its body is larger than 1 MiB.",
        "Shorten the message or send fewer turns of history.",
        retryable=False,
    ),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: Explanation(
        "The request was refused.",
        "Its Content-Type is not application/json.",
        "Send a JSON body with the header `Content-Type: application/json`.",
        retryable=False,
    ),
    ErrorCode.UNAUTHORIZED: Explanation(
        "The request was refused.",
        "It brings no key that this Parley knows.",
        "Send one in the header `Authorization: Bearer <key>`; the operator gives them out.",
        retryable=False,
    ),
    ErrorCode.RATE_LIMITED: Explanation(
        "The request was refused.",
        "This client has sent more than it may in this time.",
        "Wait for the time that Retry-After says, then send it again.",
        retryable=True,
    ),
    ErrorCode.OVERLOADED: Explanation(
        "The request was refused.",
        "Parley is serving as many streams as it may.",
        "Wait for the time that Retry-After says, then send it again.",
        retryable=True,
    ),
    ErrorCode.SHUTTING_DOWN: Explanation(
        "The request was not served to its end.",
        "This Parley is shutting down.",
        "Send it again; another instance, or the restarted one, will answer.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_AUTH: Explanation(
        "The model could not be asked.",
        "The upstream refused Parley's credentials.",
        "Tell the operator: OPENAI_API_KEY is wrong, or may not use this model.",
        retryable=False,
    ),
    ErrorCode.UPSTREAM_RATE_LIMITED: Explanation(
        "The model could not be asked.",
        "The upstream says that Parley's account has reached a limit.",
        "Wait, for the time that Retry-After says where it is given, then send it again.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_UNREACHABLE: Explanation(
        "The model could not be asked.",
        "No connection to the upstream could be made or kept.",
        "Send it again in a moment; if it goes on, the operator should check OPENAI_BASE_URL and the upstream.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_ERROR: Explanation(
        "The model did not answer.",
        "The upstream failed.",
        "Send it again in a moment; if it goes on, the operator should look at the upstream.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_TRUNCATED: Explanation(
        "The answer is not whole.",
        "The upstream's stream ended without saying why.",
        "Discard what came, or keep it as incomplete; send it again for a whole answer.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT: Explanation(
        "The model did not answer.",
        "No text came within the time allowed for the first.",
        "Send it again, or shorten the message; the operator may raise PARLEY_FIRST_TOKEN_TIMEOUT_S.",
        retryable=True,
    ),
    ErrorCode.UPSTREAM_IDLE_TIMEOUT: Explanation(
        "The answer is not whole.",
        "The upstream went silent in the middle of it.",
        "Discard what came, or keep it as incomplete; send it again for a whole answer.",
        retryable=True,
    ),
    ErrorCode.REQUEST_TIMEOUT: Explanation(
        "The request took too long.",
        "The time allowed for it ran out before the model had finished.",
        "Ask for less with `max_output_tokens`, or allow more with `timeout_s`.",
        retryable=True,
    ),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Explanation(
        "The model cannot take the request.",
        "The message and its history are longer than the model's context.",
        "Shorten the message or send fewer turns of history.",
        retryable=False,
    ),
    ErrorCode.CONTENT_FILTERED: Explanation(
        "The upstream refused the request.",
        "Its content filter does not allow this message.",
        "Change the message or its history.",
        retryable=False,
    ),
    ErrorCode.GUARDRAIL_TRIPPED: Explanation(
        "The request was refused.",
        "A guardrail of the operator's agent does not allow this message, or the answer to it.",
        "Change the message; the operator decides what the guardrails allow.",
        retryable=False,
    ),
    ErrorCode.TOO_MANY_TURNS: Explanation(
        "The agent did not come to an answer.",
        "It called tools or other agents more often than it may for one request.",
        "Ask for less at once; if it goes on, the operator should look at the agent.",
        retryable=False,
    ),
    ErrorCode.INTERNAL: Explanation(
        "Parley failed.",
        "An error that it did not expect; it is logged under the correlation id.",
        "Report the correlation id to the operator.",
        retryable=False,
    ),
}
