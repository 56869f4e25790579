"""Owns what a signal to stop means for replies: no new ones, time for those under way, then the truth."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parley.chat.service import ChatService


@contextmanager
def draining(service: ChatService, timeout_s: float) -> Iterator[None]:
    """Drain the service at SIGTERM or SIGINT, beside what the server does then; after `timeout_s`, stop its replies.

    It hooks on to the server's own handlers, as uvicorn tells the app nothing before all its connections are closed.
    """
    loop = asyncio.get_running_loop()
    servers: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        service.drain()
        loop.call_soon_threadsafe(loop.call_later, timeout_s, service.stop)
        servers[number](number, frame)

    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
        servers.update((number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT))
    servers = {number: handler for number, handler in servers.items() if callable(handler)}
    for number in servers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)
