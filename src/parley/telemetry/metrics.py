"""The metrics that Parley keeps for Prometheus."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason
from parley.telemetry.correlation import record_of

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Receive, Scope, Send

    from parley.chat.record import Record

_CHATS: Final = ("/chat", "/chat/complete")

_LEFT: Final = ("client_disconnected", "cancelled")

_HTTP: Final = ("method", "path", "status_code")
# Endings that do not start at 0: a request without a route is not a chat, and most operators have no agents.
_NO_ENDINGS: Final = {
    ErrorCode.NOT_FOUND,
    ErrorCode.METHOD_NOT_ALLOWED,
    ErrorCode.GUARDRAIL_TRIPPED,
    ErrorCode.TOO_MANY_TURNS,
}

# Buckets in seconds, up to the default deadlines and somewhat beyond.
_WAITS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_GAPS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DURATIONS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class Metrics:
    """The metrics of this process, as a `Watch`; if a label can have many values, callers do not choose them.

    Labelled metrics are cached: prometheus_client takes longer to find one than to count.
    """

    def __init__(self) -> None:
        self.replying = Gauge("parley_streams_in_flight", "Streams in flight.", multiprocess_mode="livesum").inc
        self.waiting = Gauge("parley_queue_depth", "Requests that wait for a place.", multiprocess_mode="livesum").inc
        self._chats = cache(
            Counter(
                "parley_chats",
                "Chats by their end: finish reason, error code, `client_disconnected` or `cancelled`.",
                ["ending"],
            ).labels
        )
        self._refusals = cache(
            Counter("parley_refusals", "Chats refused before any request to an upstream.", ["reason"]).labels
        )
        self._queue_wait = Histogram("parley_queue_wait_seconds", "Time in the queue.", buckets=_WAITS)
        self._first_token = cache(
            Histogram(
                "parley_first_token_wait_seconds",
                "Time from the request to the first token.",
                ["model"],
                buckets=_WAITS,
            ).labels
        )
        self.gap = Histogram(
            "parley_text_gap_seconds", "Time from one text of an answer to the next.", buckets=_GAPS
        ).observe
        self._duration = Histogram(
            "parley_chat_duration_seconds", "Time from the request to the end of the answer.", buckets=_DURATIONS
        )
        self._tokens = cache(
            Counter(
                "parley_tokens", "Tokens, by direction and by who counted them.", ["model", "direction", "source"]
            ).labels
        )
        self._cached = cache(
            Counter("parley_cached_input_tokens", "Input tokens that came from the upstream's cache.", ["model"]).labels
        )
        self._reasoning = cache(
            Counter("parley_reasoning_tokens", "Output tokens that the model used for thinking.", ["model"]).labels
        )
        self._upstream = cache(
            Counter(
                "parley_upstream_responses",
                "Upstream responses by HTTP status; `none` if the upstream was unreachable.",
                ["model", "status"],
            ).labels
        )
        self._retries = cache(Counter("parley_retries", "Retries with the same model.", ["model"]).labels)
        self._fallbacks = Counter("parley_fallbacks", "Chats that went to the fallback.")
        self.embedded_model_restarts = Counter(
            "parley_embedded_model_restarts", "Restarts of the embedded model, including failed ones."
        ).inc
        self.log_lines_dropped = Counter(
            "parley_log_lines_dropped", "Log lines dropped because the reader of standard output was too slow."
        ).inc
        self._in_progress = cache(
            Gauge(
                "parley_http_requests_in_progress",
                "HTTP requests in progress.",
                _HTTP[:2],
                multiprocess_mode="livesum",
            ).labels
        )
        self._requests = cache(Counter("parley_http_requests", "HTTP requests.", _HTTP).labels)
        self._request_duration = cache(
            Histogram(
                "parley_http_request_duration_seconds", "Time from the request to the end of the response.", _HTTP
            ).labels
        )
        self.worker_died = Counter("parley_worker_deaths", "Workers that died or hung, and were replaced.").inc
        build = Gauge(
            "parley_build_info",
            "The version of Parley and of Python; always 1.",
            ["version", "python"],
            multiprocess_mode="max",
        )
        build.labels(version("parley"), platform.python_version()).set(1)
        for ending in (*FinishReason, *ErrorCode, *_LEFT):
            if ending not in _NO_ENDINGS:
                self._chats(ending)  # start at 0, so that the first of its kind is an increase

    def upstream_answered(self, model: str, status: int | None) -> None:
        """Count an upstream's response, or a request that got none."""
        self._upstream(model, "none" if status is None else status).inc()
        self._retries(model)  # start at 0, so that the first retry is an increase

    def retrying(self, model: str) -> None:
        """Count a retry."""
        self._retries(model).inc()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Count the requests in progress by route, which is known before the response only inside the router."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            labels = record_of(scope).method, scope["path_template"]
            with self._in_progress(*labels).track_inprogress():
                await app(scope, receive, send)

        return counted

    def count(self, record: Record, took_s: float) -> None:
        """Count a request at its end, unless it has no route, as callers would choose the value of the label."""
        if record.route is None:
            return
        labels = record.method, record.route, "none" if record.status is None else record.status
        self._requests(*labels).inc()
        self._request_duration(*labels).observe(took_s)
        if record.route in _CHATS and record.method == "POST":
            self._count_chat(record)

    def _count_chat(self, record: Record) -> None:
        self._chats(
            record.finish_reason if record.outcome == "completed" else record.error_code or record.outcome
        ).inc()
        self._duration.observe(record.total_ms / 1000)
        if record.outcome == "failed" and not record.attempts:
            self._refusals(record.reason or record.error_code).inc()
        if record.queue_ms is not None:
            self._queue_wait.observe(record.queue_ms / 1000)
        if record.first_token_ms is not None:
            self._first_token(record.model).observe(record.first_token_ms / 1000)
        for direction, tokens in (("input", record.input_tokens), ("output", record.output_tokens)):
            if tokens is not None:
                self._tokens(record.model, direction, record.usage_source).inc(tokens)
        for count, tokens in ((self._cached, record.cached_input_tokens), (self._reasoning, record.reasoning_tokens)):
            if tokens is not None:
                count(record.model).inc(tokens)
        self._fallbacks.inc(bool(record.is_fallback))


@cache
def metrics() -> Metrics:
    """Return the metrics of this process."""
    return Metrics()
