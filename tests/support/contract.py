"""Owns the committed contract as the tests use it: does a body have its shape, does a new contract break an old one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema_rs
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = Path(__file__).parents[2] / "contracts"

# What a generated client does not depend on.
_PROSE: Final = {"default", "description", "discriminator", "example", "examples", "title"}


def read(name: str = "chat-api.yaml") -> Any:
    """Return a contract."""
    return yaml.safe_load((FOLDER / name).read_text())


def check(shape: str, body: object) -> None:
    """Raise `jsonschema_rs.ValidationError` where the body is not what the contract says of this shape."""
    _validator(shape).validate(body)


@cache
def _validator(shape: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{shape}", "components": read()["components"]}, validate_formats=True
    )


def breaks(old: Any, new: Any) -> Iterator[str]:
    """Yield each change that may break a client made from the old contract.

    What is not known to be harmless counts: better a version too many than a client too few.
    """
    old, new = _inlined(old, old), _inlined(new, new)
    yield from (f"{name} is gone" for name in old["components"]["schemas"].keys() - new["components"]["schemas"].keys())
    for path, operations in old["paths"].items():
        for method, was in operations.items():
            now = new["paths"].get(path, {}).get(method, {})
            if now.get("operationId") == was["operationId"]:
                yield from _in_operation(was, now, f"{method.upper()} {path}")
            else:
                yield f"{method.upper()} {path} is gone, or has another name"


def _inlined(node: Any, document: Any) -> Any:
    """Replace references by what they refer to."""
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
    old_names, new_names = _parameters(was), _parameters(now)
    yield from (f"{where}: {name} is gone" for name in old_names.keys() - new_names.keys())
    for name, is_required in new_names.items():
        if is_required and not old_names.get(name):
            yield f"{where}: {name} has to be sent"
    yield from _in_content(was.get("requestBody", {}), now.get("requestBody", {}), f"{where}, request", is_sent=True)
    for status in was["responses"].keys() & now["responses"].keys():
        yield from _in_content(was["responses"][status], now["responses"][status], f"{where}, {status}", is_sent=False)


def _parameters(operation: Any) -> dict[str, bool]:
    return {parameter["name"]: parameter["required"] for parameter in operation.get("parameters", [])}


def _in_content(was: Any, now: Any, where: str, *, is_sent: bool) -> Iterator[str]:
    new_content = now.get("content", {})
    for media_type, content in was.get("content", {}).items():
        if media_type in new_content:
            yield from _in_schema(content["schema"], new_content[media_type]["schema"], where, is_sent=is_sent)
        else:
            yield f"{where}: {media_type} is gone"


def _in_schema(was: Any, now: Any, where: str, *, is_sent: bool) -> Iterator[str]:
    for keyword in (was.keys() | now.keys()) - _PROSE:
        match was.get(keyword), now.get(keyword):
            case dict() as old, dict() as new if keyword == "properties":
                yield from (f"{where}: {name} is gone" for name in old.keys() - new.keys())
                for name in old.keys() & new.keys():
                    yield from _in_schema(old[name], new[name], f"{where}: {name}", is_sent=is_sent)
            case list() as old, list() as new if keyword in {"required", "enum"}:
                # Nothing more may be asked of a client; nothing more may come to it where the list was closed.
                more_is_worse = (keyword == "required") is is_sent
                worse = set(new) - set(old) if more_is_worse else set(old) - set(new)
                yield from (f"{where}: {keyword} {name}" for name in worse)
            case list() as old, list() as new if keyword in {"anyOf", "oneOf"} and len(old) == len(new):
                for one, other in zip(old, new, strict=True):
                    yield from _in_schema(one, other, where, is_sent=is_sent)
            case dict() as old, dict() as new if keyword == "items":
                yield from _in_schema(old, new, where, is_sent=is_sent)
            case old, new if old != new:
                yield f"{where}: {keyword} was {old}, is {new}"
            case _:
                pass
