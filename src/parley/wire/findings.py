"""Explain to a client what is wrong with its request's body: where, as a JSON pointer, and what is allowed."""

from __future__ import annotations

import re
from typing import Any, Final

from msgspec import inspect

from parley.wire.schema import NOT_BLANK_NO_NUL

_EXPECTED: Final = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_GOT: Final = {**_EXPECTED, "float": "a fraction", "bool": "a boolean", "null": "null"}
_BOUNDS: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_UNITS: Final = {"str": "characters", "array": "items"}

_WRONG_TYPE: Final = re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`")
_OUT_OF_BOUNDS: Final = re.compile(r"Expected `(\w+)`( of length)? ([<>]=?) ([\d.]+)")
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([A-Za-z0-9_-]{1,40})`")


def reworded(finding: str, shape: Any) -> str:
    """Return msgspec's finding in a client's words, without the request's values, which msgspec may quote."""
    what, _, where = finding.rpartition(" - at ")  # a quoted value may contain the same words
    if not what:  # the finding is about the whole body
        what, where = where, ""
    path = re.findall(r"\w+", where)
    if match := _MISSING.fullmatch(what):
        return f"{_pointer([*path, match[1]])} is missing."
    if (rule := _rule(what, shape, path)) is not None:
        return f"{_pointer(path) if path else 'The body'} must {rule}."
    return "JSON is malformed: it ends too early." if what == "Input data was truncated" else f"{what}."


def _pointer(path: list[str]) -> str:
    return f"`/{'/'.join(path)}`"


def _rule(what: str, shape: Any, path: list[str]) -> str | None:
    """Return the rule that the value breaks, to follow "must"; `None` if the body is not JSON."""
    if match := _WRONG_TYPE.fullmatch(what):
        rule = f"be {_EXPECTED[match[1]]}, not {_GOT[match[2]]}"
    elif match := _OUT_OF_BOUNDS.fullmatch(what):
        bound = f"{_BOUNDS[match[3]]} {float(match[4]):,.9g}"
        unit = _UNITS.get(match[1], "")
        rule = f"have {bound} {unit if match[4] != '1' else unit[:-1]}" if match[2] else f"be {bound}"
    elif what.startswith("Invalid enum value"):
        values = ", ".join(f"`{value}`" for value in _allowed(shape, path))
        rule = f"be one of {values}" if values else "be one of the values that the contract lists"
    elif "matching regex" in what:
        is_blank = what.endswith(f"matching regex {NOT_BLANK_NO_NUL!r}")
        rule = "not be blank, nor hold a NUL character" if is_blank else "not hold a NUL character"
    elif "unknown field" in what:
        named = _UNKNOWN.fullmatch(what)
        rule = f"not have a field `{named[1]}`" if named else "not have a field that the contract does not list"
    else:
        return None
    return rule


def _allowed(shape: Any, path: list[str]) -> list[Any]:
    """Return the values that are allowed at this place."""
    kind = inspect.type_info(shape)
    for step in [*path, ""]:
        kind = _bare(kind)
        match kind:
            case inspect.StructType():
                fields = {field.encode_name: field.type for field in kind.fields}
                kind = fields.get(step, kind)
            case inspect.ListType():
                kind = kind.item_type
            case inspect.LiteralType():
                return list(kind.values)
    return []


def _bare(kind: inspect.Type) -> inspect.Type:
    """Return a type without its metadata and its null."""
    match kind:
        case inspect.Metadata():
            return _bare(kind.type)
        case inspect.UnionType():
            return _bare(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
        case _:
            return kind
