"""Owns the names of an upstream's failures: whatever it, or the way to it, does wrong, as one of our error codes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import httpx2
import openai

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason
from parley.providers.wire import NotACompletionError

_MAX_RETRY_AFTER_S: Final = 3600


def named(error: Exception) -> ChatError:
    """Name what went wrong between the request and the last event."""
    match error:
        case ChatError():
            return error
        case openai.APIStatusError():
            return refusal(error)
        case openai.APIConnectionError():
            return ChatError(ErrorCode.UPSTREAM_UNREACHABLE)
        case httpx2.HTTPError():
            return ChatError(ErrorCode.UPSTREAM_TRUNCATED, detail="The upstream's connection broke.")
        case NotACompletionError():
            return ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream sent something that is not a completion.")
        case _:  # the client's own, about a response that it could not read
            return ChatError(ErrorCode.UPSTREAM_ERROR)


def refusal(error: openai.APIStatusError) -> ChatError:
    """Name an HTTP error of the upstream; its text is read here and goes no further."""
    status = error.status_code
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return ChatError(ErrorCode.UPSTREAM_AUTH, upstream_status=status)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ChatError(
            ErrorCode.UPSTREAM_RATE_LIMITED,
            retry_after_s=_retry_after_s(error.response),
            upstream_status=status,
        )
    if status == HTTPStatus.BAD_REQUEST and _is_context_length(error):
        return ChatError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, upstream_status=status)
    if status == HTTPStatus.NOT_FOUND:
        detail = "The upstream does not know the model, or the address is not its API's."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False, upstream_status=status)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT}:
        detail = "The upstream refused the request."
        return ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False, upstream_status=status)
    return ChatError(
        ErrorCode.UPSTREAM_ERROR,
        retry_after_s=_retry_after_s(error.response),
        upstream_status=status,
    )


def _is_context_length(error: openai.APIStatusError) -> bool:
    # OpenAI's code, llama.cpp's type, and the words of vLLM, which has neither.
    return (
        error.code == "context_length_exceeded"
        or error.type == "exceed_context_size_error"
        or "maximum context length" in error.message
    )


def _retry_after_s(response: httpx2.Response) -> int | None:
    """Return the seconds that the upstream asks to wait, where they are a sane number."""
    value = response.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() and 0 < int(value) <= _MAX_RETRY_AFTER_S else None


def named_finish(reason: str) -> FinishReason:
    """Take an upstream's reason for its end; any but three is a failure."""
    try:
        return FinishReason(reason)
    except ValueError:
        detail = "The upstream ended the answer for a reason that is not stop, length or content_filter."
        raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False) from None
