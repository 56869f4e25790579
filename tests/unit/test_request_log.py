"""The line that each request leaves: the record itself, encoded, and not to be told from any other line."""

from __future__ import annotations

import json
import re
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
from tests.support.logs import COLOUR

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
    """Log a record, and the same as an event like any other."""
    request_log.write(record)
    fields: dict[str, Any] = msgspec.structs.asdict(record)
    structlog.stdlib.get_logger(request_log.__name__).info("request", **fields)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records)
def test_the_encoded_record_is_the_line_that_redaction_would_have_made(
    configure: Callable[..., None], output: Logs, record: Record
) -> None:
    """Key for key, in this order: no secret, one line, printable, whatever the caller and the operator call things."""
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
def test_a_reader_at_a_terminal_sees_the_same_as_of_any_other_line(
    configure: Callable[..., None], output: Logs, record: Record
) -> None:
    """All fields, in this order."""
    before = len(output.getvalue())
    configure(log_format="console")
    log_both_ways(record)
    *lines, last = (COLOUR.sub("", line) for line in output.getvalue()[before:].split("\n"))
    assert (len(lines), last) == (2, "")
    first, second = (line.partition(" ")[2] for line in lines)
    assert first == second


@pytest.mark.parametrize(
    ("outcome", "status", "route", "level"),
    [
        ("completed", 200, "/chat", "info"),
        ("completed", 200, "/health/live", "debug"),
        ("completed", 200, "/metrics", "debug"),
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
    """Failures of Parley's own loudest, probes quietest; and what is quieter than the settings want is not written."""
    record = Record(correlation_id="mine", outcome=outcome, status=status, route=route)
    configure(log_level="debug")
    request_log.write(record)
    assert json.loads(output.getvalue())["level"] == level
    configure(log_level={"debug": "info", "info": "warning", "warning": "error"}[level])
    request_log.write(record)
    assert len(output.getvalue().splitlines()) == 1
