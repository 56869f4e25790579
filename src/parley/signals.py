"""Owns what a signal to stop means for replies: no new ones, time for those under way, then the truth."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parley.chat.service import ChatService

# For replies to end in, with the truth, when the operator does not want to wait; then the server cancels them.
_LAST_WORDS_S: Final = 1.0


@contextmanager
def draining(service: ChatService, timeout_s: float) -> Iterator[None]:
    """Drain the service at SIGTERM or SIGINT, beside what the server does then; after `timeout_s`, stop its replies.

    A SIGINT after that, a second Ctrl-C, stops them at once.
    It hooks on to the server's own handlers, as uvicorn tells the app nothing before all its connections are closed.
    To a worker, its parent's death is a SIGTERM: nobody else would stop it.
    """
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT] if threading.current_thread() is threading.main_thread() else []
    servers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    parent = multiprocessing.parent_process() if servers else None

    signals: list[int] = []

    def handle(number: int, frame: Any) -> None:
        is_hurry = number == signal.SIGINT and signals and signal.SIGINT not in signals[1:]
        signals.append(number)
        service.drain()
        tell_server = partial(servers[signal.Signals(number)], number, frame)
        if is_hurry:  # the next is the server's alone
            loop.call_soon_threadsafe(service.stop)
            loop.call_soon_threadsafe(loop.call_later, _LAST_WORDS_S, tell_server)
        else:
            loop.call_soon_threadsafe(loop.call_later, timeout_s, service.stop)
            tell_server()

    def lose_parent(sentinel: int) -> None:
        loop.remove_reader(sentinel)
        signal.raise_signal(signal.SIGTERM)

    for number in servers:
        signal.signal(number, handle)
    if parent:
        loop.add_reader(parent.sentinel, lose_parent, parent.sentinel)
    try:
        yield
    finally:
        if parent:
            loop.remove_reader(parent.sentinel)
        for number, handler in servers.items():
            signal.signal(number, handler)
