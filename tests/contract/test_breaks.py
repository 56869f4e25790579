"""Finds changes that break clients before they are released."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import contract

Change = Callable[[Any], object]


def test_no_client_of_the_last_release_breaks_unless_the_version_says_so() -> None:
    """A breaking change must raise the first number of the version or, while that is 0, the second."""
    released, current = contract.read("released.yaml"), contract.read()
    if series(current) <= series(released):
        assert list(contract.breaks(released, current)) == []


def series(document: Any) -> tuple[int, ...]:
    """Return the part of the version that a breaking change must raise."""
    major, minor, _ = contract.version(document)
    return (major,) if major else (major, minor)


def chat(document: Any) -> Any:
    """Return the operation that streams."""
    return document["paths"]["/chat"]["post"]


def headers(document: Any) -> Any:
    """Return the headers of the streaming operation's response."""
    return chat(document)["responses"]["200"]["headers"]


def properties(document: Any, name: str) -> Any:
    """Return the properties of a shape."""
    return document["components"]["schemas"][name]["properties"]


def codes(document: Any) -> Any:
    """Return the shape of the error codes."""
    return document["components"]["schemas"]["ErrorCode"]


def add_field(document: Any, name: str) -> object:
    """Add an optional field to the request, and return it."""
    return properties(document, "ChatRequest").setdefault(name, {"type": "boolean"})


def new_chunk(document: Any, field: str | None) -> object:
    """Add a kind of chunk that this field of the request asks for, and return it."""
    schemas = document["components"]["schemas"]
    chunk = schemas["SourceChunk"] = {"type": "object"} | ({"x-requested-by": field} if field else {})
    reference = "#/components/schemas/SourceChunk"
    schemas["StreamChunk"]["oneOf"].append({"$ref": reference})
    schemas["StreamChunk"]["discriminator"]["mapping"]["source"] = reference
    return chunk


BREAKS: dict[str, Change] = {
    "a path gone": lambda it: it["paths"].pop("/chat/complete"),
    "an operation renamed": lambda it: chat(it).update(operationId="chat"),
    "an operation of another tag": lambda it: chat(it).update(tags=["answers"]),
    "a lower version": lambda it: it["info"].update(version="0.0.9"),
    "another server": lambda it: it["servers"][0].update(url="/v2"),
    "a key needed": lambda it: chat(it)["security"].remove({}),
    "a key needed everywhere": lambda it: it["security"].append({"key": []}),
    "another kind of key": lambda it: it["components"]["securitySchemes"]["key"].update(scheme="basic"),
    "a body that has to be sent": lambda it: it["paths"]["/health/live"]["get"].update(requestBody={"required": True}),
    "a media type gone": lambda it: chat(it)["responses"]["200"].update(content={}),
    "another status of success": lambda it: chat(it)["responses"].update({"201": chat(it)["responses"].pop("200")}),
    "a status of failure gone": lambda it: chat(it)["responses"].pop("413"),
    "a header that has to be sent": lambda it: chat(it)["parameters"][0].update(required=True),
    "a header in the query": lambda it: chat(it)["parameters"][0].update({"in": "query"}),
    "a header with a pattern": lambda it: chat(it)["parameters"][0]["schema"].update(pattern="^a"),
    "an answer's header gone": lambda it: headers(it).pop("X-Correlation-ID"),
    "an answer's header that may be missing": lambda it: headers(it)["X-Correlation-ID"].update(required=False),
    "an answer's header of another type": lambda it: headers(it)["X-Correlation-ID"].update(schema={"type": "number"}),
    "nothing to tell chunks apart by": lambda it: it["components"]["schemas"]["StreamChunk"].pop("discriminator"),
    "something else to tell chunks apart by": lambda it: it["components"]["schemas"]["StreamChunk"][
        "discriminator"
    ].update(propertyName="kind"),
    "a default": lambda it: properties(it, "ChatRequest")["timeout_s"].update(default=30),
    "a chunk's field gone": lambda it: properties(it, "TextChunk").pop("text"),
    "a chunk's field that may be missing": lambda it: it["components"]["schemas"]["DoneChunk"]["required"].remove(
        "usage"
    ),
    "a chunk's field of another type": lambda it: properties(it, "TextChunk")["seq"].update(type="string"),
    "a tag renamed": lambda it: properties(it, "TextChunk")["type"].update(const="delta"),
    "a chunk of a new kind": lambda it: it["components"]["schemas"]["StreamChunk"]["oneOf"].append({"type": "object"}),
    "a new kind of chunk that nothing requests": lambda it: new_chunk(it, None),
    "a new kind of chunk that an old field requests": lambda it: new_chunk(it, "timeout_s"),
    "a new kind of chunk that a field of another shape requests": lambda it: new_chunk(it, "role"),
    "a new kind of chunk that a field requests that has to be sent": lambda it: (
        add_field(it, "include_sources"),
        it["components"]["schemas"]["ChatRequest"]["required"].append("include_sources"),
        new_chunk(it, "include_sources"),
    ),
    "a kind of chunk that now comes to all": lambda it: it["components"]["schemas"]["ReasoningChunk"].pop(
        "x-requested-by"
    ),
    "a kind of chunk that now has to be requested": lambda it: it["components"]["schemas"]["TextChunk"].update(
        {"x-requested-by": "include_reasoning"}
    ),
    "an error code gone": lambda it: codes(it)["x-extensible-enum"].remove("rate_limited"),
    "no list of codes": lambda it: codes(it).pop("x-extensible-enum"),
    "a status of success more": lambda it: chat(it)["responses"].update({"202": {"description": "new"}}),
    "a redirect": lambda it: chat(it)["responses"].update({"307": {"description": "new"}}),
    "another server for an operation": lambda it: chat(it).update(servers=[{"url": "/v2"}]),
    "a header that has to be sent to a path": lambda it: it["paths"]["/chat"].update(
        parameters=[{"name": "X-New", "in": "header", "schema": {"type": "string"}, "required": True}]
    ),
    "a new kind of chunk in the mapping only": lambda it: (
        add_field(it, "include_sources"),
        new_chunk(it, "include_sources"),
        it["components"]["schemas"]["StreamChunk"]["oneOf"].pop(),
    ),
    "a closed list of codes": lambda it: codes(it).update(enum=codes(it).pop("x-extensible-enum")),
    "a reason more": lambda it: it["components"]["schemas"]["FinishReason"]["enum"].append("new"),
    "a source of counts more": lambda it: it["components"]["schemas"]["UsageSource"]["enum"].append("new"),
    "a status of health more": lambda it: properties(it, "Health")["status"]["enum"].append("new"),
    "an answer's field that may be null": lambda it: properties(it, "ChatResponse").update(
        text={"anyOf": [{"type": "string"}, {"type": "null"}]}
    ),
    "a request's field that may not be null": lambda it: properties(it, "ChatRequest")["timeout_s"]["anyOf"].pop(),
    "a request's field that may be null, and is shorter": lambda it: properties(it, "ChatRequest").update(
        message={"anyOf": [properties(it, "ChatRequest")["message"] | {"maxLength": 10}, {"type": "null"}]}
    ),
    "a request's field that has to be sent": lambda it: it["components"]["schemas"]["ChatRequest"]["required"].append(
        "history"
    ),
    "a request's field gone": lambda it: properties(it, "ChatRequest").pop("timeout_s"),
    "a shorter message": lambda it: properties(it, "ChatRequest")["message"].update(maxLength=10),
    "a role gone": lambda it: properties(it, "HistoryTurn")["role"]["enum"].remove("user"),
    "a shape renamed": lambda it: it.update(json.loads(json.dumps(it).replace('Usage"', 'Tokens"'))),
}

HARMLESS: dict[str, Change] = {
    "an operation more": lambda it: it["paths"].update({"/new": {"get": {"operationId": "new", "responses": {}}}}),
    "a request's field more": lambda it: properties(it, "ChatRequest").update(seed={"type": "integer"}),
    "an answer's field more": lambda it: properties(it, "ChatResponse").update(more={"type": "string"}),
    "a chunk's field more": lambda it: properties(it, "TextChunk").update(more={"type": "string"}),
    "an error's field more": lambda it: properties(it, "ErrorResponse").update(more={"type": "string"}),
    "an error code more": lambda it: codes(it)["x-extensible-enum"].append("new"),
    "a new kind of chunk that a new field requests": lambda it: (
        add_field(it, "include_sources"),
        new_chunk(it, "include_sources"),
    ),
    "a request's field that may be null": lambda it: properties(it, "ChatRequest").update(
        message={"anyOf": [properties(it, "ChatRequest")["message"], {"type": "null"}]}
    ),
    "a role more": lambda it: properties(it, "HistoryTurn")["role"]["enum"].append("tool"),
    "other words": lambda it: properties(it, "ChatRequest")["message"].update(description="What to say."),
    "other words of a key": lambda it: it["components"]["securitySchemes"]["key"].update(description="Ask for one."),
    "a status more": lambda it: chat(it)["responses"].update({"418": {"description": "new"}}),
    "a header more": lambda it: headers(it).update(Age={"schema": {"type": "integer"}}),
    "a header that may be sent": lambda it: chat(it)["parameters"].append(
        {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "required": False}
    ),
    "a higher version": lambda it: it["info"].update(version="0.2.10"),
    "no key needed": lambda it: it["paths"]["/health/live"]["get"].update(security=[{}]),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_a_change_that_breaks_clients_is_found(change: Change) -> None:
    """Each change is made, by itself, to the current contract."""
    changed = contract.read()
    change(changed)
    assert list(contract.breaks(contract.read(), changed))


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_a_change_that_breaks_no_client_is_let_through(change: Change) -> None:
    """Each change is made, by itself, to the current contract."""
    changed = contract.read()
    change(changed)
    assert list(contract.breaks(contract.read(), changed)) == []
