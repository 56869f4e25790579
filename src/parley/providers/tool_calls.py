"""Owns the tool calls of an answer, which come in pieces."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parley.providers.wire import ToolCallDelta

_MOST_CALLS: Final = 128


class ToolCall(msgspec.Struct):
    """One call, with its arguments as the model wrote them: JSON, or what the model takes for it."""

    id: str
    name: str
    arguments: str


class ToolCalls:
    """Joins pieces to calls."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, list[str], list[str]]] = {}

    def add(self, deltas: Sequence[ToolCallDelta]) -> int:
        """Take pieces, and return the number of their characters; raise `ChatError` if there are too many calls."""
        size = 0
        for delta in deltas:
            function = delta.function
            name, arguments = (function.name or "", function.arguments or "") if function else ("", "")
            key = self._key(delta)
            if key not in self._calls:
                if len(self._calls) == _MOST_CALLS:
                    detail = f"The model made more than {_MOST_CALLS} tool calls at once."
                    raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)
                self._calls[key] = (delta.id or "", [], [])
            _, names, pieces = self._calls[key]
            if name and names != [name]:  # some upstreams repeat it
                names.append(name)
            pieces.append(arguments)
            size += len(name) + len(arguments)
        return size

    def _key(self, delta: ToolCallDelta) -> int:
        """Return the index of a call; without one, an id that is new begins a call, and all else continues the last."""
        if delta.index is not None:
            return delta.index
        for key, (known, _, __) in self._calls.items():
            if delta.id and delta.id == known:
                return key
        last = max(self._calls, default=-1)
        return last + 1 if delta.id or not self._calls else last

    def joined(self) -> list[ToolCall]:
        """Return the calls, each with an id, also if the upstream has given none."""
        return [
            ToolCall(call_id or f"call_{uuid.uuid4().hex}", "".join(names), "".join(pieces) or "{}")
            for call_id, names, pieces in self._calls.values()
        ]
