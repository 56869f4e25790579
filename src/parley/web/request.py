"""Read a request's body, within bounds, and decode it once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, ClassVar, Final

from litestar import Request
from litestar.exceptions import InternalServerException

from parley.chat.errors import ChatError, ErrorCode
from parley.web.errors import ClientDisconnectedError
from parley.wire.decoding import decode

# The bytes of incomplete bodies that all requests together may hold.
_MAX_UNFINISHED_BYTES: Final = 32 << 20
_TOO_MANY: Final = "Parley is receiving too many large requests."


class ChatAPIRequest(Request[Any, Any, Any]):
    """A request whose JSON is decoded once, directly into the type that the handler asks for.

    Litestar's own request decodes twice, accepts "5" for 5, ignores the Content-Type, and answers invalid UTF-8 and
    deep nesting with 500.
    """

    unfinished_bytes: ClassVar[int] = 0

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives; raise `ChatError` if all requests' incomplete bodies hold too many bytes."""
        held = 0
        try:
            async for piece in super().stream():
                held += len(piece)
                ChatAPIRequest.unfinished_bytes += len(piece)
                if ChatAPIRequest.unfinished_bytes > _MAX_UNFINISHED_BYTES:
                    raise ChatError(
                        ErrorCode.OVERLOADED, detail=_TOO_MANY, reason="unfinished_requests", retry_after_s=1
                    )
                yield piece
        finally:
            ChatAPIRequest.unfinished_bytes -= held

    async def body(self) -> bytes:
        """Return the body's bytes, or raise `ClientDisconnectedError` if the client disconnects before the end."""
        try:
            return await super().body()
        except InternalServerException as error:
            raise ClientDisconnectedError from error

    async def json(self) -> Any:
        """Return the body as the handler's type, or raise `ChatError` if it is not JSON of that type."""
        data_field = self.route_handler.parsed_data_field
        content_type = self.headers.get("Content-Type", "")
        return decode(await self.body(), content_type, data_field.annotation if data_field else Any)
