"""Owns what the domain and its providers tell those who measure them, beside what each request's log line says."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Whoever measures; none of it may fail, or take long."""

    def replying(self, change: int) -> None:
        """So many more replies are being made; fewer, where it is negative."""

    def waiting(self, change: int) -> None:
        """So many more prompts wait for their turn."""

    def gap(self, seconds: float) -> None:
        """This long after the text before it, another text came."""

    def upstream_answered(self, status: int | None) -> None:
        """An upstream answered with this HTTP status; `None` says that it could not be reached."""

    def embedded_model_restarts(self) -> None:
        """The embedded model is about to be started again."""
