"""Owns what uvicorn sees of a client's transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from parley.connection import Connection


class ClientTransport:
    """A transport whose end is the connection's decision; writing takes no detour."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write = transport.write
        self.is_closing = connection.is_closing
        self.close = connection.close


class Flow(FlowControl):
    """uvicorn's flow control, which also tells when the app wants more of the body."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        """Go on reading."""
        super().resume_reading()
        self._on_resume()
