"""The threads for tools that are not async."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """Runs calls in daemon threads; the threads of asyncio's own executor would delay the exit if a tool hangs."""

    # It is a `ThreadPoolExecutor` because asyncio accepts no other class; the base class's threads are not used.
    def __init__(self, most: int) -> None:
        """Use up to `most` threads; further calls wait."""
        super().__init__(most)
        self._left = Semaphore(most)
        self._idle = Semaphore(0)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> Future[T]:
        """Run a function in a thread as soon as one is free; return the future of its result."""
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args, **options)))
        if not self._idle.acquire(blocking=False) and self._left.acquire(blocking=False):
            Thread(target=self._work, daemon=True, name="tool").start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  # inherited
        """Do nothing: the threads end with the process."""

    def _work(self) -> None:
        while True:
            try:
                future, call = self._calls.get_nowait()
            except Empty:
                self._idle.release()
                future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  # the caller handles it
                    future.set_exception(error)
            del future, call  # keep no reference to a request
