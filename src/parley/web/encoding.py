"""Encode JSON for the wire, and escape the characters at which some clients break lines."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

import msgspec
from litestar import Response

BodyT = TypeVar("BodyT")

_encoder: Final = msgspec.json.Encoder()


def encode_json(body: object) -> bytes:
    """Encode a body as JSON that is one line to every client."""
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


class JSONResponse(Response[BodyT], Generic[BodyT]):
    """A response whose body `encode_json` encodes."""

    def render(self, content: Any, media_type: str, enc_hook: Any = None) -> bytes:  # noqa: ARG002  # Litestar passes them
        """Encode the body."""
        return encode_json(content)
