"""The clock of the tests that run in one event loop: instead of waiting, it jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors

# If client, Parley and upstream share a loop, data arrives immediately. After this long without any, only a timer is
# left.
_IDLE_S = 0.001


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that skips idle time: if no socket is ready, its clock jumps to the next timer.

    Tests can use the deadlines of production and still run fast. Do not use it in tests that wait for a process or a
    thread.
    """

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.ahead_s = 0.0
        """Seconds that this clock is ahead of the machine's."""

    def time(self) -> float:
        """Return the time of the loop's clock, in seconds."""
        return super().time() + self.ahead_s


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for sockets, but only for a moment; then move the clock forward by the rest of the timeout."""
        if timeout is None or timeout <= _IDLE_S:
            return super().select(timeout)
        events = super().select(_IDLE_S)
        if not events:
            self._loop.ahead_s += timeout - _IDLE_S
        return events
