"""The contract: what the OpenAPI document says about the operations and their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.spec import (
    Components,
    Example,
    License,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityRequirement,
    SecurityScheme,
    Tag,
)
from litestar.openapi.spec.base import BaseSchemaObject
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter as Named
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from parley.chat.errors import EXPLANATIONS, ErrorCode
from parley.web import docs
from parley.web.examples import bodies
from parley.wire.decoding import MAX_BODY_BYTES
from parley.wire.errors import STATUS
from parley.wire.schema import ChatRequest, ChatResponse, ErrorResponse, Health, StreamChunk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar._openapi.schema_generation import SchemaCreator

_PUBLISHED: Final[dict[str, Any]] = {
    "ChatRequest": ChatRequest,
    "StreamChunk": StreamChunk,
    "ChatResponse": ChatResponse,
    "ErrorResponse": ErrorResponse,
    "Health": Health,
}

# Errors that no operation returns; Litestar returns them if there is no such operation.
_OF_NO_OPERATION: Final = {ErrorCode.NOT_FOUND, ErrorCode.METHOD_NOT_ALLOWED}

# A client needs a key only if the operator has set any.
MAY_NEED_KEY: Final[list[SecurityRequirement]] = [{"key": []}, {}]

# An error with one of these statuses may say how long to wait.
_PASSING: Final = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}

_CORRELATION_ID: Final = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.STRING),
    required=True,
    description="The request's correlation id, which is in each of its log lines.",
)
_RETRY_AFTER: Final = OpenAPIHeader(schema=Schema(type=OpenAPIType.INTEGER), description="Seconds to wait, if known.")
_AUTHENTICATE: Final = OpenAPIHeader(schema=Schema(type=OpenAPIType.STRING), required=True, description="`Bearer`.")
_STREAM_CACHING: Final = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.STRING),
    required=True,
    description="`no-cache, no-transform`: proxies may neither store the stream nor compress it.",
)
_NO_STORE: Final = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.STRING), required=True, description="`no-store`: proxies may not store it."
)
_OWN_CORRELATION_ID: Final = Parameter(
    name="X-Correlation-ID",
    param_in="header",
    schema=Schema(type=OpenAPIType.STRING),
    description="Your own id for the request: 1 to 128 characters of `A-Z a-z 0-9 . _ -`. Parley replaces any other.",
)


def _failures(*codes: ErrorCode) -> dict[int, ResponseSpec]:
    """Describe the errors that an operation may return, by status."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        error, detail, *_ = EXPLANATIONS[code]
        by_status.setdefault(STATUS[code], []).append(f"- `{code}`: {error} {detail}")
    return {
        status: ResponseSpec(ErrorResponse, generate_examples=False, description="\n".join(of_it))
        for status, of_it in sorted(by_status.items())
    }


CHAT_FAILURES: Final = _failures(*(code for code in ErrorCode if code not in _OF_NO_OPERATION))
LIVENESS_FAILURES: Final = _failures(ErrorCode.INTERNAL)
READINESS_FAILURES: Final = LIVENESS_FAILURES | {
    503: ResponseSpec(Health, generate_examples=False, description="Parley is not ready; `reason` says why.")
}


@dataclass
class DescribedOperation(Operation):
    """An operation with headers and examples, for which a handler's decorator has no place."""

    def __post_init__(self) -> None:
        """Add the headers and examples."""
        self.parameters = [_OWN_CORRELATION_ID]
        if isinstance(self.request_body, RequestBody):
            self.request_body.description = f"At most {MAX_BODY_BYTES >> 20} MiB."
            _exemplify(self.request_body.content)
        for status, response in (self.responses or {}).items():
            if isinstance(response, OpenAPIResponse):
                content = response.content or {}
                is_error = ErrorResponse.__name__ in map(_shape, content.values())
                caching = _STREAM_CACHING if "text/event-stream" in content else _NO_STORE
                response.headers = {"X-Correlation-ID": _CORRELATION_ID, "Cache-Control": caching}
                if is_error and int(status) in _PASSING:
                    response.headers["Retry-After"] = _RETRY_AFTER
                if is_error and int(status) == HTTPStatus.UNAUTHORIZED:
                    response.headers["WWW-Authenticate"] = _AUTHENTICATE
                _exemplify(content, int(status))


def _exemplify(content: Mapping[str, OpenAPIMediaType], status: int | None = None) -> None:
    for media_type in content.values():
        if examples := bodies(_shape(media_type), status):
            media_type.examples = {name: Example(value=_Body(body)) for name, body in examples.items()}


def _shape(media_type: OpenAPIMediaType) -> str:
    return media_type.schema.ref.rpartition("/")[2] if isinstance(media_type.schema, Reference) else ""


@dataclass
class _Body(BaseSchemaObject):
    """A body as it goes over the wire, with its nulls, which Litestar would leave out."""

    body: object

    def to_schema(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(self.body))


class WireSchemas(OpenAPISchemaPlugin):
    """Publishes msgspec's own schemas; Litestar's lack the limits, the closed objects and the discriminators."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Return whether a field's type goes over the wire."""
        return field_definition.annotation in _PUBLISHED.values()

    def to_openapi_schema(  # type: ignore[override]  # Litestar accepts a reference as well
        self, field_definition: FieldDefinition, schema_creator: SchemaCreator
    ) -> Reference | None:
        """Register the schemas of all types on the wire, and return a reference to this one."""
        registry = schema_creator.schema_registry
        for name, definition in _components().items():
            schema = registry.get_schema_for_field_definition(_component(name))
            for keyword, value in definition.items():
                setattr(schema, Schema.field_aliases().get(keyword, keyword), value)
        name = next(name for name, shape in _PUBLISHED.items() if shape == field_definition.annotation)
        return registry.get_reference_for_field_definition(_component(name))


def _component(name: str) -> FieldDefinition:
    """Return the field definition that names a component in Litestar's registry."""
    shape = _PUBLISHED.get(name, object)  # no handler refers to the other components, so a name is enough
    return FieldDefinition.from_annotation(Annotated[shape, Named(schema_component_key=name)])


@cache
def _components() -> dict[str, Any]:
    """Return the schemas by name."""
    published, components = msgspec.json.schema_components(
        _PUBLISHED.values(), ref_template="#/components/schemas/{name}"
    )
    for name, schema in zip(_PUBLISHED, published, strict=True):
        if "anyOf" in schema:  # msgspec does not name a union, and does not say that exactly one member applies
            components[name] = {
                "title": name,
                "description": "One event's data; `type` tells which.",
                "oneOf": schema.pop("anyOf"),
                **schema,
            }
    return {name: _typed(schema) for name, schema in components.items()}


def _typed(schema: Any) -> Any:
    """Mark each enumeration as one of strings, and each tag as a constant, as code generators need both."""
    match schema:
        case {"enum": [tag]}:
            return {"type": "string", "const": tag}
        case {"enum": [*_]}:
            return {"type": "string", **schema}
        case dict():
            # Leave out the defaults: some code generators take a field with a default for a required one.
            return {keyword: _typed(value) for keyword, value in schema.items() if keyword != "default"}
        case list():
            return [_typed(member) for member in schema]
        case _:
            return schema


def openapi_config() -> OpenAPIConfig:
    """Return the configuration: a page at /schema, the document at /schema/openapi.json and /schema/openapi.yaml."""
    return OpenAPIConfig(
        title="Parley",
        version=version("parley"),
        summary="A streaming chat API.",
        description="POST a message, and read the model's answer as typed server-sent events.",
        license=License(name="MIT", identifier="MIT"),
        components=Components(
            security_schemes={
                "key": SecurityScheme(
                    type="http", scheme="bearer", description="One of the operator's API keys, if Parley has any."
                )
            }
        ),
        security=[],
        tags=[
            Tag("chat", "Answers to messages. To send a request again is to ask, and to pay, again."),
            Tag("health", "What an orchestrator asks."),
        ],
        use_handler_docstrings=True,
        openapi_router=docs.router(),
        render_plugins=docs.plugins(),
    )
