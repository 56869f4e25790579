"""JSON responses in the wire's encoding."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from litestar import Response

from parley.wire.encoding import encode_json

BodyT = TypeVar("BodyT")


class JSONResponse(Response[BodyT], Generic[BodyT]):
    """A response whose body `encode_json` encodes."""

    def render(self, content: Any, media_type: str, enc_hook: Any = None) -> bytes:  # noqa: ARG002  # Litestar passes them
        """Encode the body."""
        return encode_json(content)
