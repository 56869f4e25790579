"""The committed contract for the tests: it checks bodies against their shapes, and finds changes that break clients."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema_rs
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = Path(__file__).parents[2] / "contracts"

# Generated clients do not depend on these.
_PROSE: Final = {"description", "example", "examples", "title"}

_METHODS: Final = {"delete", "get", "head", "options", "patch", "post", "put", "trace"}
_LEAST_FAILURE: Final = 400
_NULL: Final = {"type": "null"}


def read(name: str = "chat-api.yaml") -> Any:
    """Return a contract, as a copy that the caller may change."""
    return copy.deepcopy(_read(name))


@cache
def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def check(shape: str, body: object) -> None:
    """Raise `jsonschema_rs.ValidationError` if the body does not match this shape of the contract."""
    _validator(shape).validate(body)


@cache
def _validator(shape: str) -> jsonschema_rs.Validator:
    components = read()["components"]
    for schema in components["schemas"].values():
        if known := schema.get("x-extensible-enum"):  # the list is open for clients, but not for Parley
            schema["enum"] = known
    return jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{shape}", "components": components}, validate_formats=True
    )


def breaks(old: Any, new: Any) -> Iterator[str]:
    """Yield each change that may break a client that was generated from the old contract.

    A change counts unless it is known to be harmless: a needless new version is better than a broken client. The
    contract's description tells clients which changes they must be ready for.
    """
    new = _without_chunks_on_request(old, new)
    old, new = _inlined(old, old), _inlined(new, new)
    if version(new) < version(old):
        yield "the version went down"
    if new["servers"] != old["servers"]:
        yield "the servers are others"
    yield from _gone(old["components"]["schemas"], new["components"]["schemas"], "components")
    old_keys, new_keys = ({"properties": one["components"]["securitySchemes"]} for one in (old, new))
    yield from _in_schema(old_keys, new_keys, "keys", is_sent=True)
    for path, operations in old["paths"].items():
        yield from (f"{path}: {name} is new" for name in new["paths"].get(path, {}).keys() - _METHODS - _PROSE)
        for method, was in operations.items():
            now = new["paths"].get(path, {}).get(method, {})
            where = f"{method.upper()} {path}"
            if now.get("operationId") == was["operationId"]:
                yield from _in_operation({**_inherited(old), **was}, {**_inherited(new), **now}, where)
            else:
                yield f"{where} is gone, or has another name"


def _without_chunks_on_request(old: Any, new: Any) -> Any:
    """Return the new contract without the kinds of chunk that Parley sends only for requests with a new field."""
    new = copy.deepcopy(new)
    request = new["components"]["schemas"]["ChatRequest"]
    fields = request["properties"].keys() - request["required"]
    fields -= old["components"]["schemas"]["ChatRequest"]["properties"].keys()
    chunk, tags = new["components"]["schemas"]["StreamChunk"], []
    for tag, reference in chunk.get("discriminator", {}).get("mapping", {}).items():
        kind = new["components"]["schemas"][reference.rpartition("/")[2]]
        if kind.get("x-requested-by") in fields and {"$ref": reference} in chunk["oneOf"]:
            chunk["oneOf"].remove({"$ref": reference})
            tags.append(tag)
    for tag in tags:
        del chunk["discriminator"]["mapping"][tag]
    return new


def version(document: Any) -> tuple[int, ...]:
    """Return a contract's version."""
    return tuple(int(number) for number in document["info"]["version"].split("."))


def _inherited(document: Any) -> Any:
    return {"security": document["security"]}


def _gone(was: Any, now: Any, where: str) -> Iterator[str]:
    yield from (f"{where}: {name} is gone" for name in was.keys() - now.keys())


def _inlined(node: Any, document: Any) -> Any:
    """Replace references with their targets."""
    match node:
        case {"$ref": reference}:
            return _inlined(document["components"]["schemas"][reference.rpartition("/")[2]], document)
        case dict():
            return {name: _inlined(value, document) for name, value in node.items()}
        case list():
            return [_inlined(member, document) for member in node]
        case _:
            return node


def _in_operation(was: Any, now: Any, where: str) -> Iterator[str]:
    if now.get("servers") != was.get("servers"):
        yield f"{where}: the servers are others"
    for status in now["responses"].keys() - was["responses"].keys():
        if int(status) < _LEAST_FAILURE:
            yield f"{where}: {status} is new, and is no failure"
    if now["tags"] != was["tags"]:
        yield f"{where}: the tags are others, and generators name classes by them"
    ways_in = now["security"] or [{}]
    yield from (f"{where}: {way or 'no key'} is not enough" for way in was["security"] or [{}] if way not in ways_in)
    yield from _in_named(_parameters(was), _parameters(now), where, is_sent=True)
    yield from _in_body(was.get("requestBody", {}), now.get("requestBody", {}), f"{where}, request", is_sent=True)
    yield from _gone(was["responses"], now["responses"], where)
    for status in was["responses"].keys() & now["responses"].keys():
        old, new = was["responses"][status], now["responses"][status]
        yield from _in_named(old["headers"], new.get("headers", {}), f"{where}, {status}", is_sent=False)
        yield from _in_body(old, new, f"{where}, {status}", is_sent=False)


def _parameters(operation: Any) -> dict[str, Any]:
    return {f"{one['in']} {one['name']}": one for one in operation.get("parameters", [])}


def _in_body(was: Any, now: Any, where: str, *, is_sent: bool) -> Iterator[str]:
    if now.get("required") and not was.get("required"):
        yield f"{where}: it has to be sent"
    yield from _in_named(was.get("content", {}), now.get("content", {}), where, is_sent=is_sent)


def _in_named(was: Any, now: Any, where: str, *, is_sent: bool) -> Iterator[str]:
    """Compare parameters, headers, or bodies by media type: each has a schema, and may be required."""
    yield from _gone(was, now, where)
    for name, new in now.items():
        old = was.get(name, {})
        if is_sent and new.get("required") and not old.get("required"):
            yield f"{where}: {name} has to be sent"
        if not is_sent and old.get("required") and not new.get("required"):
            yield f"{where}: {name} may be missing"
        if old:
            yield from _in_schema(old["schema"], new["schema"], f"{where}: {name}", is_sent=is_sent)


def _without_null(schema: Any) -> Any:
    """Return a schema that does not allow null, otherwise the same."""
    match [one for one in schema.get("anyOf", []) if one != _NULL]:
        case [one]:
            return {name: value for name, value in schema.items() if name != "anyOf"} | one
        case [*several] if several:
            return {**schema, "anyOf": several}
        case _:
            return schema


def _in_schema(was: Any, now: Any, where: str, *, is_sent: bool) -> Iterator[str]:
    now = _without_null(now) if is_sent and _NULL not in was.get("anyOf", []) else now
    for keyword in (was.keys() | now.keys()) - _PROSE:
        match was.get(keyword), now.get(keyword):
            case dict() as old, dict() as new if keyword == "properties":
                yield from _gone(old, new, where)
                for name in old.keys() & new.keys():
                    yield from _in_schema(old[name], new[name], f"{where}: {name}", is_sent=is_sent)
            case list() as old, list() as new if keyword in {"required", "enum"}:
                # A client must not have to send more, and must not receive more if the list was closed.
                more_is_worse = (keyword == "required") is is_sent
                worse = set(new) - set(old) if more_is_worse else set(old) - set(new)
                yield from (f"{where}: {keyword} {name}" for name in worse)
            case list() as old, list() as new if keyword in {"anyOf", "oneOf"} and len(old) == len(new):
                for one, other in zip(old, new, strict=True):
                    yield from _in_schema(one, other, where, is_sent=is_sent)
            case list() as old, list() as new if keyword == "x-extensible-enum":  # it is open, but clients switch on it
                yield from (f"{where}: {name} is gone" for name in set(old) - set(new))
            case dict() as old, dict() as new if keyword == "items":
                yield from _in_schema(old, new, where, is_sent=is_sent)
            case old, new if old != new:
                yield f"{where}: {keyword} was {old}, is {new}"
            case _:
                pass
