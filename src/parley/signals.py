"""What a signal to stop does: refuse new replies, give open ones time to finish, then end them with an error."""

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

# After a second Ctrl-C, the time for open replies to end with an error, before the server cancels them.
_LAST_WORDS_S: Final = 1.0
# A SIGINT this soon after the first is the same Ctrl-C: uv passes on what the terminal has sent to all processes.
_ECHO_S: Final = 0.5


@contextmanager
def draining(service: ChatService, timeout_s: float) -> Iterator[None]:
    """Drain the service at SIGTERM or SIGINT; after `timeout_s` seconds, stop its replies.

    A SIGINT after the first signal, such as a second Ctrl-C, stops the replies immediately. One that follows the first
    within half a second is ignored. The handlers wrap the server's own, because uvicorn notifies the app only after all
    its connections are closed. A worker treats its parent's death as a SIGTERM: otherwise, nothing would stop it.
    """
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT] if threading.current_thread() is threading.main_thread() else []
    servers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    parent = multiprocessing.parent_process() if servers else None

    signals: list[int] = []
    first_s = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal first_s
        if number == signal.SIGINT and signals == [number] and loop.time() - first_s < _ECHO_S:
            return
        first_s = first_s or loop.time()
        stops_at_once = number == signal.SIGINT and len(signals) > 0 and signal.SIGINT not in signals[1:]
        signals.append(number)
        service.drain()
        tell_server = partial(servers[signal.Signals(number)], number, frame)
        if stops_at_once:  # a further SIGINT goes to the server at once
            loop.call_soon_threadsafe(partial(service.stop, "second_signal"))
            loop.call_soon_threadsafe(loop.call_later, _LAST_WORDS_S, tell_server)
        else:
            loop.call_soon_threadsafe(loop.call_later, timeout_s, partial(service.stop, "drain_timeout"))
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
