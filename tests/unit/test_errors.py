"""The error table: closed, whole, and in sentences."""

from __future__ import annotations

import pytest

from parley.chat.errors import EXPLANATIONS, ChatError, ErrorCode
from parley.web.errors import STATUS
from parley.web.schema import ErrorResponse


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status_and_three_sentences(code: ErrorCode) -> None:
    """What happened, why, and what to do."""
    published = ErrorResponse.of(ChatError(code), "some-id")
    assert (published.code, published.correlation_id) == (code, "some-id")
    assert 400 <= STATUS[code] < 600
    for sentence in (published.error, published.detail, published.action):
        assert sentence.endswith(".")
        assert sentence[0].isupper()


def test_the_statuses_are_those_of_the_contract() -> None:
    """Clients rely on them."""
    assert {str(code): int(status) for code, status in STATUS.items()} == {
        "invalid_request": 400,
        "not_found": 404,
        "method_not_allowed": 405,
        "payload_too_large": 413,
        "unsupported_media_type": 415,
        "unauthorized": 401,
        "rate_limited": 429,
        "overloaded": 503,
        "shutting_down": 503,
        "upstream_auth": 502,
        "upstream_rate_limited": 503,
        "upstream_unreachable": 502,
        "upstream_error": 502,
        "upstream_truncated": 502,
        "upstream_first_token_timeout": 504,
        "upstream_idle_timeout": 504,
        "request_timeout": 504,
        "context_length_exceeded": 400,
        "internal": 500,
    }
    assert STATUS.keys() == EXPLANATIONS.keys() == set(ErrorCode)


def test_whoever_raises_an_error_may_know_better() -> None:
    """The detail and whether to try again; the rest is the code's."""
    error = ChatError(ErrorCode.UPSTREAM_ERROR, detail="Because.", retryable=False, retry_after_s=3)
    published = ErrorResponse.of(error, "some-id")
    assert (published.detail, published.retryable, published.retry_after_s) == ("Because.", False, 3)
    assert published.action == EXPLANATIONS[ErrorCode.UPSTREAM_ERROR].action
