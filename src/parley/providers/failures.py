"""Map the failures of an upstream, and of the connection to it, to Parley's error codes."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import aiohttp

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason
from parley.providers import error_bodies, vocabulary
from parley.providers.retry_after import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parley.providers.error_bodies import Problem

# Statuses of refusals that may pass within a second or two.
_TRANSIENT_STATUSES: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT}
_LIMITS: Final = {HTTPStatus.TOO_MANY_REQUESTS, 498}  # Groq sends 498 if its cheap tier is full
# Groq sends 413 for a request above the limit per minute, and OpenRouter sends 402 for too many concurrent requests.
_PERHAPS_LIMITS: Final = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.PAYMENT_REQUIRED}
_OTHER: Final = "other"


class ReportedError(Exception):
    """The upstream reported a failure in the middle of its answer; `body` is its report."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body


def no_response(error: aiohttp.ClientError) -> ChatError:
    """Return the error for a request that got no response."""
    if isinstance(error, aiohttp.ClientConnectionError):
        is_late = isinstance(error, aiohttp.ServerTimeoutError)
        was_sent = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        reason = "connect_timeout" if is_late else None
        return ChatError(ErrorCode.UPSTREAM_UNREACHABLE, reason=reason, was_sent=was_sent)
    return ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream's response is not HTTP.")


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ChatError:
    """Return the error for an HTTP error of the upstream, whose text is read here and goes no further."""
    return _named(status, error_bodies.read(body), headers, is_failure=status >= HTTPStatus.INTERNAL_SERVER_ERROR)


def unwanted_parameter(body: bytes) -> str | None:
    """Return the request parameter that the upstream refuses, if the request can do without it."""
    problem = error_bodies.read(body)
    if not vocabulary.UNWANTED.search(" ".join((*problem.names, problem.text))):
        return None
    match = vocabulary.UNWANTED_PARAMETER.search(problem.text)
    written = [*problem.parameters, *filter(None, match.groups() if match else ())]
    known = (vocabulary.PARAMETERS.get(word.replace("_", "")) for word in written)
    return next(filter(None, known), None)


def is_error(payload: bytes) -> bool:
    """Return whether an event without choices describes an error."""
    problem = error_bodies.read(payload)
    is_named = any("error" in it or it in vocabulary.LOGGED or it in vocabulary.STATUSES for it in problem.names)
    return problem.status is not None or problem.is_error or is_named


def reported(body: bytes) -> ChatError:
    """Return the error that the upstream reports within an answer, as if it had come with the status that it names."""
    problem = error_bodies.read(body)
    statuses = [vocabulary.STATUSES[name] for name in problem.names if name in vocabulary.STATUSES]
    is_limit = bool(vocabulary.PER_TIME.search(problem.text))
    status = problem.status or next(iter(statuses), HTTPStatus.TOO_MANY_REQUESTS if is_limit else None)
    is_failure = (problem.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
    error = _named(status or HTTPStatus.INTERNAL_SERVER_ERROR, problem, {}, is_failure=is_failure)
    error.upstream_status = None
    error.is_transient = error.is_transient and status is not None
    return error


def _named(status: int, problem: Problem, headers: Mapping[str, str], *, is_failure: bool) -> ChatError:
    """Return the error: by what the upstream says first, then by the status.

    `is_failure` says that the upstream itself failed; then only the names in `vocabulary.CLEAR` count.
    """
    names, text = (set(problem.names) & vocabulary.CLEAR, "") if is_failure else (set(problem.names), problem.text)
    wait = retry_after_s(headers, problem.retry_after, problem.text, is_limit=status == HTTPStatus.TOO_MANY_REQUESTS)
    is_passing = bool(names & vocabulary.PASSING)
    if status != HTTPStatus.PAYMENT_REQUIRED:
        is_passing |= wait is not None or bool(vocabulary.PER_TIME.search(text))
    known = None if status == HTTPStatus.UNAUTHORIZED else _by_words(status, names, text, is_passing=is_passing)
    if known is not None:
        known.upstream_status = status
        return known
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return ChatError(ErrorCode.UPSTREAM_AUTH, upstream_status=status)
    if status in _LIMITS or (is_passing and status in _PERHAPS_LIMITS):
        return ChatError(ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=wait, upstream_status=status, is_transient=True)
    if status == HTTPStatus.NOT_FOUND:
        detail = "The upstream does not know the model, or OPENAI_BASE_URL is wrong."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False, upstream_status=status)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _TRANSIENT_STATUSES:
        detail = "The upstream refused the request."
        if any(name in problem.text or name in problem.parameters for name in vocabulary.OUTPUT_LIMITS):
            detail = "The upstream refused the request. `max_output_tokens` is probably higher than the model allows."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False, upstream_status=status)
    return ChatError(ErrorCode.UPSTREAM_ERROR, retry_after_s=wait, upstream_status=status, is_transient=True)


def _by_words(status: int, names: set[str], text: str, *, is_passing: bool) -> ChatError | None:
    """Return the error if the upstream's words describe it better than the status does, otherwise `None`."""
    is_spent = names & vocabulary.QUOTA or vocabulary.NO_CREDIT.search(text)
    if (is_spent or status == HTTPStatus.PAYMENT_REQUIRED) and not is_passing:
        code = ErrorCode.UPSTREAM_RATE_LIMITED if status == HTTPStatus.TOO_MANY_REQUESTS else ErrorCode.UPSTREAM_ERROR
        return ChatError(code, detail="The account that Parley uses upstream has no credit left.", retryable=False)
    if names & vocabulary.BAD_KEY or vocabulary.WRONG_KEY.search(text) or vocabulary.CLOSED_ACCOUNT.search(text):
        return ChatError(ErrorCode.UPSTREAM_AUTH)
    if names & vocabulary.FILTERED or vocabulary.MODERATED.search(text):
        return ChatError(ErrorCode.CONTENT_FILTERED)
    is_long = status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or vocabulary.TOO_LONG.search(text)
    is_other = status in _LIMITS or vocabulary.PER_TIME.search(text) or vocabulary.OTHER_LIMIT.search(text)
    if names & vocabulary.OVERFLOW or (is_long and not is_other):
        detail = None
        if any(name in text for name in vocabulary.OUTPUT_LIMITS):
            detail = "The conversation and `max_output_tokens` together exceed the model's context."
        return ChatError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, detail=detail)
    return None


def error_type(body: bytes) -> str | None:
    """Return the upstream's name for its error: a well-known name, `other` for any other, `None` if it has none."""
    names = error_bodies.read(body).names
    return next((name for name in names if name in vocabulary.LOGGED), _OTHER if names else None)


def finish_reason_of(reason: str) -> FinishReason:
    """Return the finish reason that an upstream's own word stands for.

    Raises:
        ChatError: if the word says that the upstream failed.
    """
    word = reason.strip().lower()
    if word in vocabulary.BROKEN_OFF:
        raise ChatError(
            ErrorCode.UPSTREAM_ERROR, detail="The upstream stopped in the middle of the answer.", is_transient=True
        )
    return vocabulary.FINISH_REASONS.get(word, FinishReason.UNKNOWN)
