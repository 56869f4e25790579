"""Encode JSON and server-sent events, and escape the characters at which some clients break lines."""

from __future__ import annotations

from typing import Final, get_args

import msgspec

from parley.wire.schema import StreamChunk

_encoder: Final = msgspec.json.Encoder()
_KINDS: Final = {kind: str(kind.__struct_config__.tag).encode() for kind in get_args(StreamChunk)}

# No blank line after the comment: some clients would emit an empty event.
PING: Final = b": ping\n"


def encode_json(body: object) -> bytes:
    """Encode a body as one line of JSON, without characters at which some clients break lines."""
    data = _encoder.encode(body)
    return data if data.isascii() else escape_line_ends(data)


def escape_line_ends(data: bytes) -> bytes:
    """Escape U+2028, U+2029 and U+0085 in text that is already JSON, in UTF-8.

    Python's `str.splitlines()` breaks at them, and so do `iter_lines()` of httpx and of requests. JSON itself escapes
    all other line ends.
    """
    # No loop, for speed: each token that is not ASCII passes through here.
    return (
        data.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029").replace(b"\xc2\x85", rb"\u0085")
    )


def encode_frame(chunk: StreamChunk) -> bytes:
    """Encode a chunk as one server-sent event, with one data line, because its JSON has no line breaks."""
    data = _encoder.encode(chunk)  # not `encode_json`, to save a call for each token
    if not data.isascii():
        data = escape_line_ends(data)
    return b"event: %b\ndata: %b\n\n" % (_KINDS[type(chunk)], data)
