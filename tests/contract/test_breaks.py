"""A change that breaks clients is noticed before it is released."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import contract

Change = Callable[[Any], object]


def test_no_client_of_the_last_release_breaks_unless_the_version_says_so() -> None:
    """By its first number, or while that is 0 by its second."""
    released, current = contract.read("released.yaml"), contract.read()
    if series(released) == series(current):
        assert list(contract.breaks(released, current)) == []


def series(document: Any) -> tuple[str, ...]:
    """Return what a breaking change has to raise."""
    major, minor, _ = document["info"]["version"].split(".")
    return (major, minor) if major == "0" else (major,)


def properties(document: Any, name: str) -> Any:
    """Return a shape's properties."""
    return document["components"]["schemas"][name]["properties"]


BREAKS: dict[str, Change] = {
    "a path gone": lambda it: it["paths"].pop("/chat/complete"),
    "an operation renamed": lambda it: it["paths"]["/chat"]["post"].update(operationId="chat"),
    "a media type gone": lambda it: it["paths"]["/chat"]["post"]["responses"]["200"].update(content={}),
    "a header that has to be sent": lambda it: it["paths"]["/chat"]["post"]["parameters"][0].update(required=True),
    "a chunk's field gone": lambda it: properties(it, "TextChunk").pop("text"),
    "a chunk's field that may be missing": lambda it: it["components"]["schemas"]["DoneChunk"]["required"].remove(
        "usage"
    ),
    "a chunk's field of another type": lambda it: properties(it, "TextChunk")["seq"].update(type="string"),
    "a tag renamed": lambda it: properties(it, "TextChunk")["type"].update(const="delta"),
    "a chunk of a new kind": lambda it: it["components"]["schemas"]["StreamChunk"]["oneOf"].append({"type": "object"}),
    "an error of a new code": lambda it: it["components"]["schemas"]["ErrorCode"]["enum"].append("new"),
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
    "an error code less": lambda it: it["components"]["schemas"]["ErrorCode"]["enum"].remove("rate_limited"),
    "a role more": lambda it: properties(it, "HistoryTurn")["role"]["enum"].append("tool"),
    "other words": lambda it: properties(it, "ChatRequest")["message"].update(description="What to say."),
    "a status more": lambda it: it["paths"]["/chat"]["post"]["responses"].update({"418": {"description": "new"}}),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_a_change_that_breaks_clients_is_found(change: Change) -> None:
    """One by one, made to the contract of today."""
    changed = copy.deepcopy(contract.read())
    change(changed)
    assert list(contract.breaks(contract.read(), changed))


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_a_change_that_breaks_no_client_is_let_through(change: Change) -> None:
    """Likewise."""
    changed = copy.deepcopy(contract.read())
    change(changed)
    assert list(contract.breaks(contract.read(), changed)) == []
