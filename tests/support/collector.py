"""The trace collector: an OTLP endpoint on a real socket, which keeps the spans that it receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from parley.testing.upstream import ScriptedUpstream, respond

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


class Span(NamedTuple):
    """A span as it was sent."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    is_error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector(ScriptedUpstream):
    """Accepts traces at `endpoint`; set `script` to make it do something else."""

    def __init__(self) -> None:
        super().__init__()
        self.script = respond(200, {})

    @property
    def endpoint(self) -> str:
        """The endpoint to configure in Parley."""
        return self.url.removesuffix("/v1")

    def spans(self, kind: str) -> list[Span]:
        """Return the received spans of a kind, in the order in which they started."""
        found = []
        for exchange in self.exchanges:
            assert exchange.path == "/v1/traces"
            for of_resource in ExportTraceServiceRequest.FromString(exchange.body).resource_spans:
                resource = _plain(of_resource.resource.attributes)
                found += [(span, resource) for scope in of_resource.scope_spans for span in scope.spans]
        found.sort(key=lambda pair: pair[0].start_time_unix_nano)
        return [span for span in (_read(*pair) for pair in found) if span.kind == kind]


def _read(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    assert not span.events, "an event could hold an exception's text"
    assert not span.status.message, "likewise"
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        _plain(span.attributes),
        resource,
    )


def _plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> Any:
    if value.WhichOneof("value") == "array_value":
        return [_value(member) for member in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "")
