"""Owns what the domain and its providers tell those who measure them, beside what each request's log line says."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from agents import ModelSettings

    from parley.chat.run import Run


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


class Asked(NamedTuple):
    """Who is asked for a reply."""

    model: str
    host: str
    port: int


class Tracer(Protocol):
    """Whoever follows a request on its way to the model; none of it may fail, or take long."""

    def asking(self, asked: Asked, settings: ModelSettings, run: Run) -> AbstractContextManager[Mapping[str, str]]:
        """Follow one attempt, which is made in the block; yield the headers to ask with.

        What came of it is known at the block's end by the run, and by the error that leaves the block.
        """


class Untraced:
    """Follows nothing."""

    def asking(self, *_: object) -> AbstractContextManager[Mapping[str, str]]:
        """Do nothing."""
        return _NO_HEADERS


_NO_HEADERS: Final[AbstractContextManager[Mapping[str, str]]] = nullcontext({})
