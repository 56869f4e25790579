"""Owns the logs: a structured line an event, for Parley and its libraries alike, with no secret and no one's text."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import EventDict, Processor, WrappedLogger

    from parley.settings import Settings

_HIDDEN: Final = "***"

# Where a reader looks first.
_FIRST: Final = ("timestamp", "level", "event")

_SECRET_NAME: Final = re.compile(
    r"authorization|(api|private|secret|access)[-_]?key|^key$|cookie|credential|pass(word|phrase)|secret|(^|[-_])(token|pwd)$",
    re.IGNORECASE,
)
_SECRET_VALUE: Final = re.compile(
    r"(?i:bearer)\s+[\w.~+/=-]+"
    r"|\bsk-[\w-]{6,}"
    r"|(?i:authorization|api[-_ ]?key|pass(?:word|phrase)|pwd|secret|token)[\"']?\s*[:=]\s*[\"']?"
    r"(?i:basic\s+|digest\s.*)?[\w.~+/=-]{8,}"
    r"|(?i:authorization|key|pass(?:word|phrase)|pwd|secret|token)(?:\W{1,5}|\s+is\s+)[\w+/=-]{20,}"
    r"|://[^\s/@]+@"
)

# Of these we know that their messages hold nothing of a request; of any other's warnings, only where they come from
# is logged.
_TRUSTED: Final = ("parley", "uvicorn")


def configure(settings: Settings) -> None:
    """Send everything that is logged to standard output, as JSON or readable."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stdout.isatty())
    renderers: list[Processor] = (
        [structlog.processors.JSONRenderer(serializer=_to_json)]
        if as_json
        else [_trace_in_lines, structlog.dev.ConsoleRenderer()]
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _trace_without_text,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_withhold_untrusted, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact, *renderers],
        )
    )
    handler.addFilter(_is_no_traceback)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in _TRUSTED:
        logging.getLogger(name).setLevel(settings.log_level.upper())
    logging.captureWarnings(capture=True)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Hide secrets: all that stands under a secret's name, and what looks like one anywhere else."""
    return {name: _redacted(name, value) for name, value in event.items()}


def _redacted(name: str, value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case _ if _is_secret(name):
            return _HIDDEN
        case int() | float():
            return value
        case dict():
            return {key: _redacted(str(key), member) for key, member in value.items()}
        case list() | tuple():
            return [_redacted("", member) for member in value]
        case _:
            return _SECRET_VALUE.sub(_HIDDEN, str(value))


@lru_cache(1000)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _withhold_untrusted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    if record.name.partition(".")[0] not in _TRUSTED:
        event["event"] = "library_message"
        event["location"] = f"{record.module}:{record.lineno}"
        event.pop("positional_args", None)
    return event


def _trace_without_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace an exception by the types and places of its chain: its text may quote a prompt or an upstream."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exception"] = list(_chain(error))
    return event


def _chain(error: BaseException | None) -> Any:
    while error is not None:
        places = [
            f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        yield {"type": f"{type(error).__module__}.{type(error).__qualname__}", "places": places}
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _trace_in_lines(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if "exception" in event:
        event["exception"] = "\n".join("\n  ".join([e["type"], *e["places"]]) for e in event["exception"])
    return event


def _is_no_traceback(record: logging.LogRecord) -> bool:
    # uvicorn logs a failed start's traceback, text and all, as a message; the failure has its own line by then.
    return "Traceback (most recent call last)" not in str(record.msg)


def _to_json(event: Mapping[str, Any], **_: Any) -> str:
    ordered = {name: event[name] for name in _FIRST} | dict(event)
    return msgspec.json.encode(ordered, enc_hook=str).decode()
