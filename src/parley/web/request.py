"""Owns the reading of a request's body: media type, strict decoding, and what is wrong with it in our own words."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from parley.chat.errors import ChatError, ErrorCode
from parley.web.errors import ClientDisconnectedError
from parley.web.schema import NOT_BLANK_NO_NUL

MAX_BODY_BYTES: Final = 1 << 20

T = TypeVar("T")


class ChatAPIRequest(Request[Any, Any, Any]):
    """A request whose JSON is decoded once, straight into the type that the handler asks for.

    Litestar's own way decodes twice, takes "5" for 5, never looks at the Content-Type, and answers 500 to invalid UTF-8
    and to deep nesting.
    """

    async def body(self) -> bytes:
        """Return the body's bytes.

        Raises:
            ClientDisconnectedError: where the client leaves before it is whole.
        """
        try:
            return await super().body()
        except InternalServerException as error:
            raise ClientDisconnectedError from error

    async def json(self) -> Any:
        """Return the body as the handler's type.

        Raises:
            ChatError: where it is not that, or not JSON.
        """
        data_field = self.route_handler.parsed_data_field
        content_type = self.headers.get("Content-Type", "")
        return decode(await self.body(), content_type, data_field.annotation if data_field else Any)


def decode(body: bytes, content_type: str, shape: type[T]) -> T:
    """Decode a body of this Content-Type into this shape.

    Raises:
        ChatError: where it is not that, or not JSON.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ChatError(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail=_reworded(str(error))) from None
    except UnicodeDecodeError:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail="The body is not UTF-8.") from None
    except RecursionError:
        raise ChatError(ErrorCode.INVALID_REQUEST, detail="The body is nested too deeply.") from None


def _reworded(finding: str) -> str:
    """Say what msgspec found without the request's values, which its own words quote in part."""
    what, _, where = finding.partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".")
    if what.endswith(f"matching regex {NOT_BLANK_NO_NUL!r}"):
        what = "Must not be blank, nor hold a NUL character"
    elif "matching regex" in what:
        what = "Must not hold a NUL character"
    elif what == "Input data was truncated":
        what = "JSON is malformed: it ends too early"
    elif what.startswith("Invalid enum value"):
        what = "Not one of the values allowed"
    elif "unknown field" in what and not re.search(r"`[A-Za-z0-9_-]{1,40}`$", what):
        what = "Object contains an unknown field"
    return f"{what}, at `{path}`." if path else f"{what}."
