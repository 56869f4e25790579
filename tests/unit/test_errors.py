"""The error table: every code has a status and complete sentences, and upstream errors map to these codes."""

from __future__ import annotations

import json

import pytest

from parley.chat.errors import EXPLANATIONS, ChatError, ErrorCode
from parley.providers.failures import error_type, refusal
from parley.wire.errors import STATUS
from parley.wire.schema import ErrorResponse


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status_and_three_sentences(code: ErrorCode) -> None:
    """The sentences say what happened, why, and what to do."""
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
        "content_filtered": 400,
        "guardrail_tripped": 400,
        "too_many_turns": 502,
        "internal": 500,
    }
    assert STATUS.keys() == EXPLANATIONS.keys() == set(ErrorCode)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ({"code": "insufficient_quota", "type": "whatever"}, "insufficient_quota"),
        ({"code": 429, "type": "RATE_LIMIT_ERROR"}, "rate_limit_error"),
        ({"code": "my_name_is_jane_doe", "type": "invalid_request_error"}, "invalid_request_error"),
        ({"code": "my_name_is_jane_doe"}, "other"),
        ({"code": "Some words of a message."}, "other"),
        ({"code": None, "type": ""}, None),
        ({"message": "Some words of a message."}, None),
        ("Some words of a message.", None),
    ],
)
def test_an_upstreams_name_for_its_error_is_a_well_known_one_or_other(error: object, name: str | None) -> None:
    """Parley logs the name, and an upstream could put any text there."""
    assert error_type(json.dumps({"error": error}).encode()) == name


@pytest.mark.parametrize("nested", [b'{"error":' * 100_000, b'{"a":' * 100_000, b"[" * 100_000])
def test_an_error_body_that_is_nested_too_deeply_is_none(nested: bytes) -> None:
    """The response is still an HTTP error, and Parley chooses the code by its status."""
    assert error_type(nested) is None
    assert refusal(400, nested, {}).code is ErrorCode.UPSTREAM_ERROR


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("7", 7), ("3600", 3600), ("3601", None), ("0", None), ("-7", None), ("9" * 5000, None)],
)
def test_a_retry_after_is_passed_on_if_it_is_a_sane_number(retry_after: str, seconds: int | None) -> None:
    """Python's `int` raises an error for 5,000 digits."""
    assert refusal(429, b"", {"Retry-After": retry_after}).retry_after_s == seconds


def test_whoever_raises_an_error_may_know_better() -> None:
    """The detail, `retryable` and the waiting time can be set per error; the rest comes from the code."""
    error = ChatError(ErrorCode.UPSTREAM_ERROR, detail="Because.", retryable=False, retry_after_s=3)
    published = ErrorResponse.of(error, "some-id")
    assert (published.detail, published.retryable, published.retry_after_s) == ("Because.", False, 3)
    assert published.action == EXPLANATIONS[ErrorCode.UPSTREAM_ERROR].action
