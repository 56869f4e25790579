"""The detail of an invalid request, in a client's words, whatever values the request contains."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parley.chat.errors import ChatError, ErrorCode
from parley.wire.decoding import decode
from parley.wire.schema import ChatRequest

# They look like the locations in msgspec's error messages.
AWKWARD = ["u - at x", "u - at `$.message`", "u - at `$.history[0].role`", "` - at `", " - at "]
TURN = {"role": "user", "content": "Hi"}


def detail_of(body: dict[str, Any]) -> str:
    """Return the error detail for this body."""
    with pytest.raises(ChatError) as caught:
        decode(json.dumps(body).encode(), "application/json", ChatRequest)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value.explanation.detail


@pytest.mark.parametrize("text", AWKWARD)
def test_a_value_that_looks_like_a_place_is_none(text: str) -> None:
    """The pointer names the field, and the detail quotes no value."""
    turns = [TURN, {"role": text, "content": "Hi"}]
    assert detail_of({"message": "Hi", "history": turns}) == "`/history/1/role` must be one of `assistant`, `user`."
    for wrong in ({"message": "Hi", "history": [{**TURN, text: 1}]}, {"message": "Hi", text: 1}):
        assert "that the contract does not list" in detail_of(wrong)
        assert text not in detail_of(wrong)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"message": "Hi", "timeout_s": True}, "`/timeout_s` must be a number, not a boolean."),
        ({"message": "Hi", "max_output_tokens": 1.5}, "`/max_output_tokens` must be a whole number, not a fraction."),
        ({"message": "Hi", "max_output_tokens": 10**7}, "`/max_output_tokens` must be at most 1,000,000."),
        ({"message": "Hi", "history": [{"role": "user"}]}, "`/history/0/content` is missing."),
        ({"message": "Hi", "history": "Hi"}, "`/history` must be an array, not a string."),
        ({"message": "Hi", "include_reasoning": 1}, "`/include_reasoning` must be true or false, not a whole number."),
    ],
)
def test_the_detail_names_the_field_and_what_is_allowed(body: dict[str, Any], detail: str) -> None:
    """The detail contains no type names of Python."""
    assert detail_of(body) == detail
