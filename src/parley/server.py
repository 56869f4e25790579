"""Owns the server: runs the app on uvicorn, and lets replies end when it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from parley.app import create_app

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from parley.chat.service import ChatService
    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)

# Beyond the longest a reply may take, so that none is cut.
_GRACE_S: Final = 2


class _Server(uvicorn.Server):
    """A uvicorn that turns the service away from new prompts as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: ChatService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self._service.drain()
        super().handle_exit(sig, frame)


def serve(settings: Settings, unknown: Iterable[tuple[str, str | None]]) -> int:
    """Serve until a signal ends it; return the exit code."""
    app = create_app(settings)
    for name, meant in unknown:
        _log.warning("unknown_setting", setting=name, did_you_mean=meant)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=round(settings.request_timeout_s) + _GRACE_S,
        ws="none",
    )
    server = _Server(config, app.state.service)
    server.run()
    return 0 if server.started else 1
