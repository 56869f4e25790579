"""Owns the upstream's wire: decodes chat-completion chunks out of the bytes of an event stream."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_EVENT_BYTES: Final = 1 << 20


class Delta(msgspec.Struct):
    """What a chunk adds to the answer; a refusal is the model's answer too."""

    content: str | None = None
    refusal: str | None = None


class Choice(msgspec.Struct):
    """The one answer that was asked for."""

    delta: Delta | None = None
    finish_reason: str | None = None


class TokenCounts(msgspec.Struct):
    """The upstream's own count."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Chunk(msgspec.Struct):
    """A `chat.completion.chunk`, cut down to what Parley reads; `error` stands for a failure that was sent in-band."""

    choices: list[Choice] | None = None
    usage: TokenCounts | None = None
    error: msgspec.Raw = msgspec.Raw()  # in a union, msgspec would not take it


decode_chunk: Final = msgspec.json.Decoder(Chunk).decode


class EventTooLargeError(Exception):
    """An event grows past `MAX_EVENT_BYTES`."""


# What bytes can have wrong that are not those of a stream of chunks.
WIRE_ERRORS: Final = (EventTooLargeError, msgspec.DecodeError, UnicodeDecodeError)


class EventDecoder:
    """Incremental decoder of `text/event-stream` that keeps only each event's data.

    Lines end with LF or CRLF; the lone CR that the standard also allows is sent by no known server.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that these bytes complete.

        Raises:
            EventTooLargeError: where an event grows past `MAX_EVENT_BYTES`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise EventTooLargeError
        complete: list[bytes] = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if not text and self._data:
                complete.append(b"\n".join(self._data))
                self._data.clear()
            elif text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
        return complete
