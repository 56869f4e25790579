"""The deadlines for a client: to send its request, and to make progress with reading the response."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# Checks of a client's progress per timeout; a client that stops is cut off at most one check late.
_LOOKS: Final = 4


class Deadline:
    """A deadline for one thing that a client has to do; calls `cut` if it passes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, cut: Callable[[], None]) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._cut = cut
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer, if it is not running."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._cut)

    def clear(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ProgressDeadline(Deadline):
    """A deadline for progress: `left` returns how much is still to do.

    A timer checks `left` periodically, so that progress itself costs nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        cut: Callable[[], None],
        left: Callable[[], int],
    ) -> None:
        super().__init__(loop, timeout_s, cut)
        self._left = left
        self._last_left = 0
        self._looks_without_progress = 0

    def start(self) -> None:
        """Start the timer, if it is not running."""
        if self._timer is None:
            self._last_left = sys.maxsize  # read at the first check, as most waits end before it
            self._looks_without_progress = 0
            self._wait()

    def _wait(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s / _LOOKS, self._look)

    def _look(self) -> None:
        left = self._left()
        self._looks_without_progress = 0 if left < self._last_left else self._looks_without_progress + 1
        self._last_left = left
        if self._looks_without_progress == _LOOKS:
            self._cut()
        else:
            self._wait()
