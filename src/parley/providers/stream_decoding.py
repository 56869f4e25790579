"""Decode chat completion chunks from the bytes of an upstream's event stream."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_EVENT_BYTES: Final = 1 << 20


# None of these can be part of a reference cycle. Without `gc=False`, a chunk with many choices would trigger the
# garbage collector, which blocks the event loop.
class FunctionDelta(msgspec.Struct, gc=False):
    """A piece of a function's name and arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, gc=False):
    """A piece of a tool call; the index, or failing that the id, tells which call it belongs to."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds to the answer; a refusal is part of the answer, too."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()  # decoded only if the request had tools


class Details(msgspec.Struct, gc=False):
    """The breakdown of a token count."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class TokenCounts(msgspec.Struct, gc=False):
    """The upstream's own token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None


class Choice(msgspec.Struct, gc=False):
    """One answer; Parley asks for one, whose index is 0 or missing."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    index: int | None = None
    usage: TokenCounts | None = None
    text: str | None = None
    error: msgspec.Raw = msgspec.Raw()


class GroqFields(msgspec.Struct, gc=False):
    """Groq's own fields beside the choices."""

    usage: TokenCounts | None = None


class Chunk(msgspec.Struct, gc=False):
    """A `chat.completion.chunk`, reduced to what Parley reads; `error` is a failure that the upstream sent in-band."""

    choices: list[Choice] | None = None
    usage: TokenCounts | None = None
    x_groq: GroqFields | None = None
    error: msgspec.Raw = msgspec.Raw()  # msgspec does not accept `Raw` in a union


decode_chunk: Final = msgspec.json.Decoder(Chunk).decode
decode_tool_calls: Final = msgspec.json.Decoder(list[ToolCallDelta] | None).decode


class EventTooLargeError(Exception):
    """An event grows past `MAX_EVENT_BYTES`, or has far too many values."""


# What decoding raises if the bytes are not a stream of chunks; `RecursionError` means JSON that is nested too deeply.
WIRE_ERRORS: Final = (EventTooLargeError, ValueError, RecursionError)

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# Names of events that keep a connection alive.
_PINGS: Final = {b"ping", b"heartbeat", b"keepalive", b"keep-alive"}


class EventDecoder:
    """Incremental decoder of `text/event-stream` that keeps only each event's data.

    A body that begins with `{` or `[` is not an event stream: it is kept as one event.
    """

    def __init__(self) -> None:
        self.lines = 0
        """The number of complete lines so far."""
        self.error: bytes | None = None
        """The data of an event named `error`, or of a line that stands for one."""
        self._is_begun = False
        self._is_json = False
        self._is_stream = False
        self._after_return = False
        self._rest = bytearray()
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that these bytes complete, in time proportional to these bytes alone.

        Raises:
            EventTooLargeError: if an event grows past `MAX_EVENT_BYTES`.
        """
        if b"\r" in data or self._after_return:
            data = self._with_line_feeds(data)
        *lines, last = data.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest + lines[0])
            self._rest.clear()
        self._rest += last
        self.lines += len(lines)
        complete: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:") and self._is_stream:
                self._data.append(line[5:].removeprefix(b" "))
                self._data_bytes += len(line) + 1
            elif line:
                self._take_other(line)
            elif not self._name and self._is_stream:
                if self._data:
                    complete.append(b"\n".join(self._data))
                    self._data.clear()
                    self._data_bytes = 0
            else:
                self._complete(complete)
        if len(self._rest) + self._data_bytes > MAX_EVENT_BYTES:
            raise EventTooLargeError
        return complete

    def end(self) -> list[bytes]:
        """Return the data of the last event, even if its line breaks are missing."""
        complete = self.feed(b"\n") if self._rest else []
        self._is_json = False
        self._complete(complete)
        return complete

    def _with_line_feeds(self, data: bytes) -> bytes:
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _complete(self, complete: list[bytes]) -> None:
        if self._data and not self._is_json:
            data = b"\n".join(self._data)
            if self._name == b"error":
                self.error = data
            elif self._name not in _PINGS or b'"choices"' in data:
                complete.append(data)
            self._data.clear()
            self._data_bytes = 0
        self._name = b""

    def _take_other(self, line: bytes) -> None:
        """Take a line that is not data, or that may be the first of the body."""
        if not self._is_begun:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_begun = bool(line.strip())
            self._is_json = line.lstrip().startswith((b"{", b"["))
            self._is_stream = self._is_begun and not self._is_json
        if self._is_json or line.startswith(b"data:"):
            self._data.append(line if self._is_json else line[5:].removeprefix(b" "))
            self._data_bytes += len(line) + 1
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()[:20]
        elif line.startswith((b"error:", b'{"error"')):  # from llama.cpp, and from servers that end a stream with JSON
            self.error = line.removeprefix(b"error:").strip()
