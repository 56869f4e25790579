"""Format the log for people: an aligned line per request, and the known fields of any other event."""

from __future__ import annotations

from http import HTTPStatus
from time import localtime, strftime
from typing import TYPE_CHECKING, Any, Final

from structlog.dev import DIM, GREEN, RED, RESET_ALL, YELLOW, ConsoleRenderer

from parley.chat.errors import ErrorCode
from parley.telemetry.redaction import legible

if TYPE_CHECKING:
    import logging

    from structlog.typing import EventDict, Processor, WrappedLogger

    from parley.chat.record import Record

_TIME: Final = "%H:%M:%S"
_OUTCOME_WIDTH: Final = max(map(len, ErrorCode))


def request_line(record: Record, entry: logging.LogRecord, *, has_colours: bool) -> str:
    """Return a request's line: the time, status, route, outcome, milliseconds, tokens and correlation id."""
    outcome: str = record.error_code or record.outcome
    if note := record.reason or (record.finish_reason if record.finish_reason != "stop" else None):
        outcome += f" ({note})"
    tokens = (
        "" if record.usage_source is None else f"{_count(record.input_tokens)}+{_count(record.output_tokens)} tokens"
    )
    status = "---" if record.status is None else f"{record.status:d}"
    columns = (
        (DIM, strftime(_TIME, localtime(entry.created))),
        (_colour(record), status),
        ("", f"{record.method or '-'} {record.route or '(no such path)'}".ljust(24)),
        (_colour(record), outcome.ljust(_OUTCOME_WIDTH)),
        ("", f"{record.total_ms:6d} ms"),
        ("", tokens.rjust(16)),
        (DIM, legible(record.correlation_id)),
    )
    return "  ".join(f"{colour}{text}{RESET_ALL}" if has_colours and colour else text for colour, text in columns)


def renderers(*, has_colours: bool) -> list[Processor]:
    """Return the processors that make a line from any other event."""
    return [_tidy, ConsoleRenderer(colors=has_colours, sort_keys=False, pad_event_to=0)]


def _colour(record: Record) -> str:
    is_good = record.outcome == "completed" and record.status == HTTPStatus.OK
    colour: str = RED if record.is_failure else GREEN if is_good else YELLOW
    return colour


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else f"{tokens}"


def _tidy(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Leave out unknown fields and the logger's name; shorten the time, and lay out an exception in lines."""
    tidied: dict[str, Any] = {name: value for name, value in event.items() if value is not None and name != "logger"}
    tidied["timestamp"] = strftime(_TIME)
    if "exception" in event:
        tidied["exception"] = "\n".join("\n  ".join([e["type"], *e["places"]]) for e in event["exception"])
    return tidied
