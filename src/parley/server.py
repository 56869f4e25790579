"""Owns the server: runs the app on uvicorn, and lets replies end when it is told to stop."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from parley.app import create_app
from parley.connection import Connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from types import FrameType

    from parley.chat.service import ChatService
    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)

# Seconds for answers to end in when they have been told to, before uvicorn cuts them.
_GRACE_S: Final = 5


class Server(uvicorn.Server):
    """A uvicorn that has the service refuse new prompts as soon as it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        """Make the app and the server for it."""
        app = create_app(settings)
        self._drain_timeout_s = settings.drain_timeout_s
        self._service: ChatService = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                access_log=False,
                http=partial(  # type: ignore[arg-type]  # uvicorn calls it as it would call the class
                    Connection, read_timeout_s=settings.read_timeout_s, write_timeout_s=settings.write_timeout_s
                ),
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + _GRACE_S,
                ws="none",
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the running answers; when their time is up, have each end by itself."""
        timer = asyncio.get_running_loop().call_later(self._drain_timeout_s, self._service.stop)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal to stop."""
        self._service.drain()
        super().handle_exit(sig, frame)


def serve(settings: Settings, unknown: Iterable[tuple[str, str | None]]) -> None:
    """Serve until a signal ends it; warn of the `unknown` variables, each with the setting that may be meant.

    Raises:
        SystemExit: with code 3, where it cannot start; why is logged.
    """
    server = Server(settings)
    for name, meant in unknown:
        _log.warning("unknown_setting", setting=name, did_you_mean=meant)
    with suppress(KeyboardInterrupt):  # uvicorn raises Ctrl-C anew when it has stopped for it
        server.run()
