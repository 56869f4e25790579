"""The contract's shapes: msgspec's own schemas, as the OpenAPI document publishes them."""

from __future__ import annotations

from functools import cache, partial
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import msgspec
from litestar.params import Parameter as Named
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from parley.chat.errors import ErrorCode
from parley.wire.info import Info
from parley.wire.schema import ChatRequest, ChatResponse, ErrorResponse, Health, StreamChunk

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.openapi.spec import Reference

_PUBLISHED: Final[dict[str, Any]] = {
    "ChatRequest": ChatRequest,
    "StreamChunk": StreamChunk,
    "ChatResponse": ChatResponse,
    "ErrorResponse": ErrorResponse,
    "Health": Health,
    "Info": Info,
}


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
            schema.to_schema = partial(dict, definition)  # type: ignore[method-assign]  # it would drop extensions
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
    for schema in components.values():
        schema["description"] = cleandoc(schema["description"])  # before Python 3.13, docstrings keep indentation
    components[ErrorCode.__name__] = _open(components[ErrorCode.__name__], list(ErrorCode))
    for kind in get_args(StreamChunk):
        if field := getattr(kind, "requested_by", None):
            components[kind.__name__]["x-requested-by"] = field
    return {name: _for_generators(schema) for name, schema in components.items()}


def _open(schema: Any, known: list[str]) -> dict[str, Any]:
    """Describe an enumeration as strings: generated clients could not decode values that it does not list."""
    listed = ", ".join(f"`{value}`" for value in known)
    return {
        "title": schema["title"],
        "description": f"{schema['description']} Known codes: {listed}.",
        "type": "string",
        "x-extensible-enum": known,
    }


def _for_generators(schema: Any) -> Any:
    """Mark each enumeration as one of strings, and each tag as a constant, as code generators need both."""
    match schema:
        case {"enum": [tag]}:
            return {"type": "string", "const": tag}
        case {"enum": [*_]}:
            return {"type": "string", **schema}
        case dict():
            # Leave out the defaults: some code generators take a field with a default for a required one.
            return {keyword: _for_generators(value) for keyword, value in schema.items() if keyword != "default"}
        case list():
            return [_for_generators(member) for member in schema]
        case _:
            return schema
