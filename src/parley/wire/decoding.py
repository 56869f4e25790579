"""Decode a request's body: check its media type and its shape, and explain in Parley's words what is wrong."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from parley.chat.errors import ChatError, ErrorCode
from parley.wire.findings import reworded

T = TypeVar("T")


def decode(body: bytes, content_type: str, shape: type[T]) -> T:
    """Decode a body into this shape; raise `ChatError` if its Content-Type is not JSON, or its shape is another."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ChatError(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail=reworded(str(error), shape)) from None
    except UnicodeDecodeError:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail="The body is not UTF-8.") from None
    except RecursionError:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail="The body is nested too deeply.") from None
