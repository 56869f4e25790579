"""Join the tool calls of an answer, which arrive in pieces."""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from parley.providers.stream_decoding import ToolCallDelta

_MOST_CALLS: Final = 128


class ToolCall(msgspec.Struct):
    """One call, with its arguments as the model wrote them: JSON, but not always valid JSON."""

    id: str
    name: str
    arguments: str


class ToolCalls:
    """Joins pieces into calls."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def add(self, pieces: Sequence[ToolCallDelta]) -> int:
        """Add the pieces of a chunk; return the number of their characters.

        Raises:
            ChatError: if there are too many calls.
        """
        if len(pieces) > _MOST_CALLS:
            raise _TooManyCallsError
        size = 0
        for place, piece in enumerate(pieces):
            function = piece.function
            name, arguments = (function.name or "", function.arguments or "") if function else ("", "")
            call = self._find(piece, name, place)
            if call is None:
                if len(self._calls) == _MOST_CALLS:
                    raise _TooManyCallsError
                call = _Call(piece.index, piece.id or "")
                self._calls.append(call)
            if name and call.names != [name]:  # some upstreams repeat the name
                call.names.append(name)
            call.arguments.write(arguments)
            size += len(name) + len(arguments)
        return size

    def _find(self, piece: ToolCallDelta, name: str, place: int) -> _Call | None:
        """Return the call that a piece continues, or `None` if the piece begins a new call.

        The index tells calls apart. If an upstream sends no index, or always the same one, the ids do; without ids, the
        positions in the chunk do.
        """
        for call in reversed(self._calls):
            if piece.index is None:
                if piece.id == call.id or (not piece.id and not (place and name)):
                    return call
            elif piece.index == call.index and not (name and piece.id and call.id and piece.id != call.id):
                return call
        return None

    def joined(self, known: Iterable[str]) -> list[ToolCall]:
        """Return the calls; a call gets a new id if it has none, or one that is `known` or that another call has.

        Some upstreams restart their numbering in each answer, and openai-agents would take a call for an earlier one.
        """
        ids = {"", *known}
        calls: list[ToolCall] = []
        for call in self._calls:
            call_id = f"call_{uuid.uuid4().hex}" if call.id in ids else call.id
            ids.add(call_id)
            calls.append(ToolCall(call_id, "".join(call.names), call.arguments.getvalue() or "{}"))
        return calls


class _Call:
    def __init__(self, index: int | None, call_id: str) -> None:
        self.index = index
        self.id = call_id
        self.names: list[str] = []
        self.arguments = io.StringIO()  # a list of many short texts would take ten times the memory


class _TooManyCallsError(ChatError):
    def __init__(self) -> None:
        detail = f"The model made more than {_MOST_CALLS} tool calls at once."
        super().__init__(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)
