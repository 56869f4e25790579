"""Log one line per request, however it ended: at which level, and in which form."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from parley.telemetry.redaction import legible

if TYPE_CHECKING:
    from parley.chat.record import Record

PROBES: Final = ("/health", "/metrics")
_QUIET: Final = (*PROBES, "/schema/swagger-ui")  # the files of the documentation page

EVENT: Final = "request"

_log: Final = logging.getLogger(__name__)
_encoder: Final = msgspec.json.Encoder()
_legible_model: Final = lru_cache(legible)


def write(record: Record) -> None:
    """Log a request; the message is the record itself, which the handler's formatter renders."""
    is_quiet = str(record.route).startswith(_QUIET) and record.outcome == "completed"
    _log.log(logging.WARNING if record.is_failure else logging.DEBUG if is_quiet else logging.INFO, record)


def encode(record: Record, entry: logging.LogRecord) -> str:
    """Return the line as JSON.

    Only two fields need redaction: the correlation id may be the caller's, and the model's name is the operator's. All
    other fields are numbers or Parley's own words.
    """
    is_safe = record.correlation_id.isalnum()  # what looks like a secret has other characters in it
    correlation_id = record.correlation_id if is_safe else legible(record.correlation_id)
    model = None if record.model is None else _legible_model(record.model)
    if (correlation_id, model) != (record.correlation_id, record.model):
        record = msgspec.structs.replace(record, correlation_id=correlation_id, model=model)
    time = datetime.fromtimestamp(entry.created, UTC)
    head = _encoder.encode({"timestamp": time, "level": entry.levelname.lower(), "event": EVENT})
    tail = _encoder.encode({"logger": entry.name})
    return b"".join((head[:-1], b",", _encoder.encode(record)[1:-1], b",", tail[1:])).decode()
