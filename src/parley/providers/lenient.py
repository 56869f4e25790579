"""Decode chunks that deviate from the chat completions API."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from parley.providers import stream_decoding
from parley.providers.stream_decoding import (
    Choice,
    Chunk,
    Delta,
    Details,
    EventTooLargeError,
    FunctionDelta,
    TokenCounts,
    ToolCallDelta,
)

_MOST_PARTS: Final = 10_000
# Per event: Python's decoder, which reads these events, takes 0.3 µs per value.
_MOST_VALUES: Final = 100_000
_MOST_DIGITS: Final = 18
# The vendors' names for the field that holds a part's text.
_TEXTS: Final = ("text", "content", "thinking", "reasoning", "summary", "refusal")
_THOUGHTS: Final = ("thinking", "reasoning", "redacted_thinking", "thought")
_COUNTS: Final = tuple(name for name in TokenCounts.__struct_fields__ if not name.endswith("_details"))


def decode_chunk(payload: bytes) -> Chunk:
    """Decode as much of a chunk as possible: unknown forms are left out, and broken characters become U+FFFD.

    Raises:
        ValueError: if it is not JSON, or its choices are not a list or far too many.
        EventTooLargeError: if it has far too many values.
        RecursionError: if it is nested too deeply.
    """
    decoded = _decode(payload)
    if not isinstance(decoded, dict):
        return Chunk()
    error = decoded.get("error")
    groq = decoded.get("x_groq")
    choices = decoded.get("choices")
    if not isinstance(choices, list | None) or len(choices or ()) > _MOST_PARTS:
        raise ValueError("the choices are no list, or far too many")
    return Chunk(
        choices=[_choice(choice) for choice in choices if isinstance(choice, dict)]
        if isinstance(choices, list)
        else None,
        usage=_usage(decoded.get("usage")) or _usage(groq.get("usage") if isinstance(groq, dict) else None),
        error=msgspec.Raw() if error is None else msgspec.Raw(json.dumps(error).encode()),
    )


def decode_tool_calls(payload: msgspec.Raw) -> list[ToolCallDelta]:
    """Decode the pieces of tool calls, even if the arguments are an object instead of JSON text.

    Raises:
        ValueError: if it is not JSON.
        EventTooLargeError: if it has far too many values.
    """
    try:
        return stream_decoding.decode_tool_calls(payload) or []
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = _decode(bytes(payload))
    return [_tool_call(call) for call in decoded if isinstance(call, dict)] if isinstance(decoded, list) else []


def _decode(payload: bytes) -> Any:
    if payload.count(b",") + payload.count(b"[") + payload.count(b"{") > _MOST_VALUES:
        raise EventTooLargeError
    # Python's decoder accepts NaN and lone surrogates.
    return json.loads(payload.decode(errors="replace"), parse_int=_int)


def _tool_call(call: dict[str, Any]) -> ToolCallDelta:
    call_id, function = call.get("id"), call.get("function")
    name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments)
    return ToolCallDelta(
        index=_count(call.get("index")),
        id=_string(call_id),
        function=FunctionDelta(_string(name), _string(arguments)),
    )


def _string(value: Any) -> str | None:
    return _text(value, is_thought=None) if isinstance(value, str) else None


def _int(digits: str) -> int | None:
    """Return a number; `None` if it has more digits than any honest one, as they would take long to read."""
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def _choice(choice: dict[str, Any]) -> Choice:
    reason, index, error = (choice.get(name) for name in ("finish_reason", "index", "error"))
    return Choice(
        delta=_delta(choice.get("delta")),
        message=_delta(choice.get("message")),
        finish_reason=reason if isinstance(reason, str) else None,
        index=_count(index),
        usage=_usage(choice.get("usage")),
        text=_text(choice.get("text"), is_thought=None),
        error=msgspec.Raw() if error is None else msgspec.Raw(json.dumps(error).encode()),
    )


def _delta(delta: Any) -> Delta | None:
    if not isinstance(delta, dict):
        return None
    content = delta.get("content")
    calls = delta.get("tool_calls")
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    return Delta(
        content=_text(content, is_thought=False) or None,
        refusal=_text(delta.get("refusal"), is_thought=None) or None,
        reasoning_content=_text(reasoning, is_thought=None) + _text(content, is_thought=True) or None,
        tool_calls=msgspec.Raw() if calls is None else msgspec.Raw(json.dumps(calls).encode()),
    )


def _text(value: Any, *, is_thought: bool | None) -> str:
    """Return the text of a string, a part or a list of parts: only the reasoning, only the rest, or all (`None`)."""
    texts: list[str] = []
    nodes: list[tuple[Any, bool]] = [(value, False)]
    read = 0
    while nodes:
        read += 1
        node, in_thought = nodes.pop()
        if isinstance(node, str):
            if is_thought is None or in_thought is is_thought:
                texts.append(node)
        elif isinstance(node, list):
            if read + len(nodes) + len(node) > _MOST_PARTS:
                raise ValueError("there are far too many parts")
            nodes += ((member, in_thought) for member in reversed(node))
        elif isinstance(node, dict):
            in_thought = in_thought or node.get("type") in _THOUGHTS or node.get("thought") is True
            nodes += ((node[name], in_thought) for name in _TEXTS if name in node)
    return "".join(texts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(usage: Any) -> TokenCounts | None:
    if not isinstance(usage, dict):
        return None
    counts: dict[str, Any] = {name: _count(usage.get(name)) for name in _COUNTS}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        details = usage.get(name)
        if isinstance(details, dict):
            counts[name] = Details(**{field: _count(details.get(field)) for field in Details.__struct_fields__})
    return TokenCounts(**counts)


def _count(value: Any) -> int | None:
    """Return a whole number, even if it is written as `3.0` or in quotes; `None` if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
