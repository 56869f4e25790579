"""Log one structured line per event, for Parley and its libraries, without secrets and without anyone's text."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from contextlib import suppress
from contextvars import Context
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from parley.chat.record import Record
from parley.telemetry import console, request_log
from parley.telemetry.log_queue import LogQueue
from parley.telemetry.metrics import metrics
from parley.telemetry.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import EventDict, Processor, WrappedLogger

    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)

# The fields that each line begins with.
_FIRST: Final = ("timestamp", "level", "event")

# Loggers whose messages are known to hold nothing from a request. For any other logger's warnings, Parley logs only the
# location.
_TRUSTED: Final = ("parley", "uvicorn")


def configure(settings: Settings) -> None:
    """Send everything that is logged to standard output, as JSON or in a form for people.

    Logging never waits for the reader of the process's own standard output, which may be slow, or stop. If `sys.stdout`
    has been replaced, as in tests, each line is written as soon as it is logged.
    """
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not is_terminal)
    has_colours = is_terminal and not os.environ.get("NO_COLOR")
    renderers: list[Processor] = (
        [structlog.processors.JSONRenderer(serializer=_to_json)]
        if as_json
        else console.renderers(has_colours=has_colours)
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
    handler = _Handler(_own_output() if sys.stdout is sys.__stdout__ else sys.stdout)
    handler.setFormatter(
        _Formatter(
            request_log.encode if as_json else partial(console.request_line, has_colours=has_colours),
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


def settle() -> None:
    """Wait for each line from now on, a second in total: a process that is ending may be killed after any line."""
    if _own_output.cache_info().currsize:
        _own_output().settle()


@cache
def _own_output() -> LogQueue:
    """Return the queue to the process's own standard output, which may be closed."""
    stdout = sys.__stdout__
    descriptor, encoding = (-1, "utf-8") if stdout is None else (stdout.fileno(), stdout.encoding)
    queue = LogQueue(descriptor, encoding, metrics().log_lines_dropped, _tell_dropped)
    if hasattr(os, "register_at_fork"):  # Windows has no forks
        os.register_at_fork(after_in_child=queue.start)
    atexit.register(queue.close)
    return queue


def _tell_dropped(number: int) -> None:
    # In a new context, as the dropped lines are not those of the request that is logging now.
    Context().run(_log.error, "log_lines_dropped", number=number)


class _Handler(logging.StreamHandler[Any]):
    """A handler that does not show an event that it cannot write."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Log only the event's location; logging's own method would print the unredacted event to standard error."""
        with suppress(Exception):
            where = f"{record.module}:{record.lineno}"
            self.stream.write(f'{{"level":"error","event":"unloggable","location":"{where}"}}\n')


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """A formatter that renders requests' records itself; every other event goes through structlog's processors."""

    def __init__(self, request_line: Callable[[Record, logging.LogRecord], str], **options: Any) -> None:
        super().__init__(**options)
        self._request_line = request_line

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for an event."""
        if isinstance(record.msg, Record):
            return self._request_line(record.msg, record)
        return super().format(record)


def _withhold_untrusted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    if record.name.partition(".")[0] not in _TRUSTED:
        event["event"] = "library_message"
        event["location"] = f"{record.module}:{record.lineno}"
        event.pop("positional_args", None)
    return event


def _trace_without_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace an exception with the types and places of its chain: its text may quote a prompt or an upstream."""
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


def _is_no_traceback(record: logging.LogRecord) -> bool:
    # If the start fails, uvicorn logs the traceback, with its text, as a message; the failure is logged by then.
    return not (isinstance(record.msg, str) and "Traceback (most recent call last)" in record.msg)


def _to_json(event: Mapping[str, Any], **_: Any) -> str:
    ordered = {name: event[name] for name in _FIRST} | dict(event)
    return msgspec.json.encode(ordered, enc_hook=str).decode()
