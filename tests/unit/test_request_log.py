"""The log line of each request: it is encoded straight from the record, and looks like any other line."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason, UsageSource
from parley.chat.record import Record
from parley.telemetry import request_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.logs import Logs

Outcome = Literal["completed", "failed", "client_disconnected", "cancelled"]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")

counts = st.none() | st.integers(0, 2**63)
odd_text = st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Lu", "Po"]))
records = st.builds(
    Record,
    correlation_id=st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)
    | st.sampled_from(["sk-abcdefghijklm", "token-0123456789abcdef0123456789", "0123456789abcdef" * 2]),
    outcome=st.just("completed"),
    bytes_in=st.integers(0, 2**63),
    model=st.none()
    | st.text()
    | odd_text
    | st.sampled_from(["smollm2-135m-instruct", "a\nb", 'a"b', "sk-abcdefghijk"]),
    route=st.none() | st.sampled_from(["/chat", "/schema/{path}"]),
    error_code=st.none() | st.sampled_from(ErrorCode),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    usage_source=st.none() | st.sampled_from(UsageSource),
    is_fallback=st.none() | st.booleans(),
    chunks=counts,
    input_tokens=counts,
)


def log_both_ways(record: Record) -> None:
    """Log a record directly, and again as an ordinary event."""
    request_log.write(record)
    fields: dict[str, Any] = msgspec.structs.asdict(record)
    structlog.stdlib.get_logger(request_log.__name__).info("request", **fields)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records)
def test_the_encoded_record_is_the_line_that_redaction_would_have_made(
    configure: Callable[..., None], output: Logs, record: Record
) -> None:
    """Both lines have the same keys and values in the same order, and are printable and without secrets."""
    before = len(output.getvalue())
    configure()
    log_both_ways(record)
    *lines, last = output.getvalue()[before:].split("\n")
    assert (len(lines), last) == (2, "")
    assert lines[0].isprintable()
    encoded, merged = (list(json.loads(line).items()) for line in lines)
    assert encoded[1:] == merged[1:]
    for name, value in (encoded[0], merged[0]):
        assert name == "timestamp"
        assert TIME.fullmatch(value)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records)
def test_a_reader_at_a_terminal_gets_one_line_without_what_nobody_knows(
    configure: Callable[..., None], output: Logs, record: Record
) -> None:
    """The line is printable and shows no secret, whatever text the caller and the operator chose."""
    before = len(output.getvalue())
    configure(log_format="console")
    request_log.write(record)
    line, end = output.getvalue()[before:].split("\n")
    assert (line.isprintable(), end) == (True, "")
    assert "None" not in line
    assert not re.search("sk-abc|token-0123", line)


def test_a_reader_at_a_terminal_sees_how_a_request_went(configure: Callable[..., None], output: Logs) -> None:
    """The line has aligned columns."""
    configure(log_format="console")
    answered = Record(
        correlation_id="a" * 32,
        outcome="completed",
        method="POST",
        route="/chat",
        status=HTTPStatus.OK,
        total_ms=378,
        finish_reason=FinishReason.LENGTH,
        input_tokens=31,
        output_tokens=8,
        usage_source=UsageSource.UPSTREAM,
    )
    left = msgspec.structs.replace(
        answered,
        outcome="client_disconnected",
        finish_reason=None,
        input_tokens=None,
        usage_source=UsageSource.ESTIMATE,
    )
    refused = Record(
        correlation_id="b",
        outcome="failed",
        method="GET",
        status=HTTPStatus.UNAUTHORIZED,
        error_code=ErrorCode.UNAUTHORIZED,
        reason="no_key",
    )
    for record in (answered, left, refused):
        request_log.write(record)
    times, lines = zip(*(line.split("  ", 1) for line in output.getvalue().splitlines()), strict=True)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", time) for time in times)
    assert list(lines) == [
        "200  POST /chat                completed (length)               378 ms       31+8 tokens  " + "a" * 32,
        "200  POST /chat                client_disconnected              378 ms        ?+8 tokens  " + "a" * 32,
        "401  GET (no such path)        unauthorized (no_key)              0 ms                    b",
    ]


@pytest.mark.parametrize(
    ("outcome", "status", "route", "level"),
    [
        ("completed", 200, "/chat", "info"),
        ("completed", 200, "/health/live", "debug"),
        ("completed", 200, "/metrics", "debug"),
        ("completed", 200, "/schema/swagger-ui/{folder:str}/{name:str}", "debug"),
        ("completed", 200, "/schema", "info"),
        ("failed", 401, "/metrics", "info"),
        ("failed", 502, "/chat", "warning"),
        ("failed", 404, None, "info"),
        ("cancelled", None, "/chat", "warning"),
        ("client_disconnected", 499, "/chat", "info"),
    ],
)
def test_a_line_is_as_loud_as_it_must_be(
    configure: Callable[..., None],
    output: Logs,
    outcome: Outcome,
    status: int | None,
    route: str | None,
    level: str,
) -> None:
    """Parley's failures have the highest level, probes and static files the lowest; lower levels are left out."""
    record = Record(correlation_id="mine", outcome=outcome, status=status, route=route)
    configure(log_level="debug")
    request_log.write(record)
    assert json.loads(output.getvalue())["level"] == level
    configure(log_level={"debug": "info", "info": "warning", "warning": "error"}[level])
    request_log.write(record)
    assert len(output.getvalue().splitlines()) == 1
