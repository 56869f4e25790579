"""Owns the timing of one reply: its turn, its first text, the gaps between texts, its end."""

from __future__ import annotations

import asyncio

from parley.chat.events import Timing


class Stopwatch:
    """Runs from when it is made, by the loop's clock."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self.started = self._now()
        self.queue_ms: int | None = None
        """The wait for a turn, once it is over."""
        self.first_token: float | None = None
        self._last_text = 0.0

    def turn(self) -> None:
        """Note that the wait for a turn is over: it has come, or will not."""
        self.queue_ms = self._since_start_ms(self._now())

    def text(self) -> float | None:
        """Note that a text has come; return the seconds since the one before, if there was any."""
        now = self._now()
        gap_s = None if self.first_token is None else now - self._last_text
        if self.first_token is None:
            self.first_token = now
        self._last_text = now
        return gap_s

    def timing(self) -> Timing:
        """Return the milliseconds so far."""
        first_token_ms = None if self.first_token is None else self._since_start_ms(self.first_token)
        return Timing(first_token_ms=first_token_ms, total_ms=self._since_start_ms(self._now()))

    def _since_start_ms(self, moment: float) -> int:
        return round((moment - self.started) * 1000)
