"""Trace requests with OpenTelemetry: a span for each request, each model call, and each attempt to reach the model."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from importlib.metadata import version
from threading import Thread
from typing import TYPE_CHECKING, Final

import structlog
from litestar.enums import ScopeType
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import NO_USAGE
from parley.telemetry.correlation import record_of
from parley.telemetry.request_log import PROBES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from litestar import Litestar
    from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from parley.chat.record import Record
    from parley.chat.run import Attempt

# Seconds; a collector that does not answer must not delay the exit.
_LAST_EXPORT_TIMEOUT_S: Final = 3

_log: Final = structlog.stdlib.get_logger(__name__)

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Traces:
    """Traces requests to the model and back.

    The spans hold only the attributes named here: never a path, a header, a message or an exception's text.
    """

    def __init__(self, url: str) -> None:
        """Trace to the collector at this URL; the SDK reads all other options from its own OTEL_ variables."""
        self._url = url
        ours = Resource.create({"service.name": "parley", "service.version": version("parley")})
        operators = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        # At the exit of the process, the SDK would wait for the collector without a limit.
        self._provider = TracerProvider(resource=ours.merge(operators), shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("parley")

    @asynccontextmanager
    async def exporting(self, _: Litestar) -> AsyncIterator[None]:
        """Export spans from a thread while the app runs; at the end, wait a few seconds for the rest."""
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter(self._url)))
        try:
            yield
        finally:
            closing = Thread(target=self._provider.shutdown, daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, _LAST_EXPORT_TIMEOUT_S)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Give each request except probes a span, and put the trace id into the request's record."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP or scope["path"].startswith(PROBES):
                await app(scope, receive, send)
                return
            with self._tracer.start_as_current_span(
                "HTTP", _callers(scope), SpanKind.SERVER, record_exception=False, set_status_on_exception=False
            ) as span:
                if (
                    context := span.get_span_context()
                ).is_valid:  # the operator can turn the SDK off by one of its own variables
                    record_of(scope).trace_id = format_trace_id(context.trace_id)
                await app(scope, receive, send)

        return traced

    def describe(self, record: Record) -> None:
        """Set the name, attributes and status of the request's span from its record."""
        span = get_current_span()
        method = None if record.method == "other" else record.method
        span.update_name(" ".join(filter(None, (method or "HTTP", record.route))))
        attributes = {
            "http.request.method": method or "_OTHER",
            "http.route": record.route,
            "http.response.status_code": record.status,
            "error.type": record.error_code,
            "parley.correlation_id": record.correlation_id,
            "parley.outcome": record.outcome,
        }
        span.set_attributes(_known(attributes))
        if record.is_failure:
            span.set_status(StatusCode.ERROR)

    def begin(self, attempt: Attempt) -> _CallSpan:
        """Start the span of a model call, by OpenTelemetry's conventions for generative AI."""
        attributes: dict[str, AttributeValue | None] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",  # the vendor of the API; `server.address` names the server
            "gen_ai.request.model": attempt.model,
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": attempt.max_tokens,
            "gen_ai.request.temperature": attempt.temperature,
            "server.address": attempt.host,
            "server.port": attempt.port,
        }
        span = self._tracer.start_span(f"chat {attempt.model}", kind=SpanKind.CLIENT, attributes=_known(attributes))
        return _CallSpan(self._tracer, span, attempt)


class _CallSpan:
    """The span of one model call; the spans of its attempts are its children."""

    def __init__(self, tracer: Tracer, span: Span, attempt: Attempt) -> None:
        self._tracer = tracer
        self._span = span
        self._last = attempt
        self._retries = -1

    def attempt(self, attempt: Attempt) -> _AttemptSpan:
        """Start the span of the next attempt, by OpenTelemetry's conventions for HTTP."""
        self._last = attempt
        self._retries += 1
        attributes: dict[str, AttributeValue | None] = {
            "http.request.method": "POST",
            "http.request.resend_count": self._retries or None,
            "server.address": attempt.host,
            "server.port": attempt.port,
        }
        context = set_span_in_context(self._span)
        span = self._tracer.start_span("POST", context, SpanKind.CLIENT, attributes=_known(attributes))
        return _AttemptSpan(span, attempt)

    def end(self, error: BaseException | None) -> None:
        """Record the result of the call, and end the span."""
        attempt, usage = self._last, self._last.usage or NO_USAGE
        attributes: dict[str, AttributeValue | None] = {
            "gen_ai.response.finish_reasons": [attempt.finish_reason] if attempt.finish_reason else None,
            "gen_ai.response.time_to_first_chunk": attempt.first_text_s,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }
        self._span.set_attributes(_known(attributes))
        _end(self._span, error)


class _AttemptSpan:
    """The span of one attempt."""

    def __init__(self, span: Span, attempt: Attempt) -> None:
        self._span = span
        self._attempt = attempt
        self.headers: dict[str, str] = {}
        _PROPAGATOR.inject(self.headers, set_span_in_context(span))

    def end(self, error: BaseException | None) -> None:
        """Record the upstream's status, and end the span."""
        self._span.set_attributes(_known({"http.response.status_code": self._attempt.status}))
        _end(self._span, error)


class _Exporter(OTLPSpanExporter):
    """Sends spans, and logs the number of spans that could not be sent."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # It logs each failure several times, and Parley would withhold the text anyway.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; log a failure once, after the last retry."""
        result = super().export(spans)
        if result is SpanExportResult.FAILURE:
            _log.warning("spans_lost", spans=len(spans), remedy="check the collector and the OTEL_EXPORTER_ variables")
        return result


def _callers(scope: HTTPScope) -> Context:
    """Continue the caller's trace by its ids alone: `tracestate` and `baggage` are text of the caller's choice."""
    traceparent = dict(scope["headers"]).get(b"traceparent", b"")
    return _PROPAGATOR.extract({"traceparent": traceparent.decode("latin-1")})


def _end(span: Span, error: BaseException | None) -> None:
    if isinstance(error, Exception):  # a cancelled call, as when the client disconnects, is not an error
        span.set_attribute("error.type", error.code if isinstance(error, ChatError) else ErrorCode.INTERNAL)
        span.set_status(StatusCode.ERROR)
    span.end()


def _known(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    """Leave out unknown attributes."""
    return {name: value for name, value in attributes.items() if value is not None}
