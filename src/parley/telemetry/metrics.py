"""Owns the metrics: what is counted and measured for Prometheus, beside what Litestar's plugin does of all HTTP."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason

if TYPE_CHECKING:
    from parley.telemetry.request_log import RequestLog

_CHATS: Final = ("/chat", "/chat/complete")

_LEFT: Final = ("client_disconnected", "cancelled")

# Seconds, up to the default deadlines and somewhat beyond.
_WAITS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_GAPS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DURATIONS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class Metrics:
    """What this process counts; where labels have many values, no caller chooses them."""

    def __init__(self) -> None:
        self._in_flight = Gauge("parley_streams_in_flight", "Replies being made.", multiprocess_mode="livesum")
        self._queue = Gauge("parley_queue_depth", "Prompts that wait for their turn.", multiprocess_mode="livesum")
        self._chats = Counter("parley_chats", "Chats by their end: finish reason, error code, or who left.", ["ending"])
        self._refusals = Counter("parley_refusals", "Chats refused before a model was asked.", ["reason"])
        self._queue_time = Histogram("parley_queue_seconds", "Wait for a turn.", buckets=_WAITS)
        self._first_token = Histogram("parley_first_token_seconds", "Request to first text.", buckets=_WAITS)
        self._gap = Histogram("parley_token_gap_seconds", "Text to next text.", buckets=_GAPS)
        self._duration = Histogram("parley_chat_seconds", "Request to end.", buckets=_DURATIONS)
        self._tokens = Counter("parley_tokens", "Tokens, by who counted them.", ["direction", "source"])
        self._upstream = Counter("parley_upstream_responses", "By HTTP status; `none`: unreachable.", ["status"])
        self._retries = Counter("parley_retries", "Times that the same model was asked again.")
        self._fallbacks = Counter("parley_fallbacks", "Chats for which the fallback was asked.")
        self._restarts = Counter(
            "parley_embedded_model_restarts", "Times that the embedded model was started again, or in vain."
        )
        self._log_lines_dropped = Counter(
            "parley_log_lines_dropped", "Log lines that standard output did not take, or not soon enough."
        )
        for ending in (*FinishReason, *ErrorCode, *_LEFT):
            self._chats.labels(ending)  # at 0, so that the first of its kind is an increase

    def replying(self, change: int) -> None:
        """Count replies being made."""
        self._in_flight.inc(change)

    def waiting(self, change: int) -> None:
        """Count prompts that wait."""
        self._queue.inc(change)

    def gap(self, seconds: float) -> None:
        """Measure the gap before a text."""
        self._gap.observe(seconds)

    def upstream_answered(self, status: int | None) -> None:
        """Count an upstream's answer."""
        self._upstream.labels("none" if status is None else status).inc()

    def embedded_model_restarts(self) -> None:
        """Count a start."""
        self._restarts.inc()

    def log_lines_dropped(self, number: int) -> None:
        """Count lines that nobody will read."""
        self._log_lines_dropped.inc(number)

    def count(self, line: RequestLog) -> None:
        """Count a request, by the line that it leaves in the log."""
        if line.route not in _CHATS or line.method != "POST":
            return
        self._chats.labels(line.finish_reason if line.outcome == "completed" else line.error_code or line.outcome).inc()
        self._duration.observe(line.total_ms / 1000)
        if line.outcome == "failed" and not line.attempts:
            self._refusals.labels(line.reason or line.error_code).inc()
        for histogram, milliseconds in ((self._queue_time, line.queue_ms), (self._first_token, line.first_token_ms)):
            if milliseconds is not None:
                histogram.observe(milliseconds / 1000)
        for direction, tokens in (("input", line.input_tokens), ("output", line.output_tokens)):
            if tokens is not None:
                self._tokens.labels(direction, line.usage_source).inc(tokens)
        self._fallbacks.inc(bool(line.is_fallback))
        self._retries.inc(max(0, (line.attempts or 0) - 1 - bool(line.is_fallback)))


@cache
def metrics() -> Metrics:
    """Return the metrics of this process."""
    return Metrics()
