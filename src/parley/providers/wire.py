"""Owns the upstream's wire: decodes chat-completion chunks out of the bytes of an event stream."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_EVENT_BYTES: Final = 1 << 20


# None of these can be part of a reference cycle. Without `gc=False`, a chunk of many choices would trigger the garbage
# collector, which holds up the loop.
class FunctionDelta(msgspec.Struct, gc=False):
    """A piece of a function's name and arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, gc=False):
    """A piece of a tool call; calls are told apart by their index, or failing that, by their id."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds to the answer; a refusal is the model's answer too."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()  # decoded only if the request had tools


class Choice(msgspec.Struct, gc=False):
    """One answer; Parley asks for one, whose index is 0 or missing."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    index: int | None = None


class TokenCounts(msgspec.Struct, gc=False):
    """The upstream's own count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Chunk(msgspec.Struct, gc=False):
    """A `chat.completion.chunk`, cut down to what Parley reads; `error` stands for a failure that was sent in-band."""

    choices: list[Choice] | None = None
    usage: TokenCounts | None = None
    error: msgspec.Raw = msgspec.Raw()  # in a union, msgspec would not take it


decode_chunk: Final = msgspec.json.Decoder(Chunk).decode
decode_tool_calls: Final = msgspec.json.Decoder(list[ToolCallDelta] | None).decode


class EventTooLargeError(Exception):
    """An event grows past `MAX_EVENT_BYTES`."""


# What decoding raises if the bytes are not a stream of chunks; `RecursionError` is for JSON that is nested too deeply.
WIRE_ERRORS: Final = (EventTooLargeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class EventDecoder:
    """Incremental decoder of `text/event-stream` that keeps only each event's data.

    Lines end with LF or CRLF; the lone CR that the standard also allows is sent by no known server.
    """

    def __init__(self) -> None:
        self.lines = 0
        """The complete lines so far."""
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that these bytes complete. The work is proportional to these bytes alone.

        Raises:
            EventTooLargeError: if an event grows past `MAX_EVENT_BYTES`.
        """
        *lines, last = data.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest + lines[0])
            self._rest.clear()
        self._rest += last
        if lines and not self.lines:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        self.lines += len(lines)
        complete: list[bytes] = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if not text and self._data:
                complete.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
            elif text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
                self._data_bytes += len(text)
        if len(self._rest) + self._data_bytes > MAX_EVENT_BYTES:
            raise EventTooLargeError
        return complete
