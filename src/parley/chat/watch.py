"""Owns what the domain and its providers tell those who measure them, beside what each request's log line says."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parley.chat.run import Attempt


class Watch(Protocol):
    """Whoever measures; none of it may fail, or take long."""

    def replying(self, change: int, /) -> None:
        """So many more replies are being made; fewer, where it is negative."""

    def waiting(self, change: int, /) -> None:
        """So many more prompts wait for their turn."""

    def gap(self, seconds: float, /) -> None:
        """This long after the text before it, another text came."""

    def upstream_answered(self, model: str, status: int | None) -> None:
        """An upstream answered for this model, with this HTTP status; `None` says that it could not be reached."""

    def retrying(self, model: str) -> None:
        """The same model is about to be asked again."""

    def embedded_model_restarts(self) -> None:
        """The embedded model is about to be started again."""


class AttemptSpan(Protocol):
    """One attempt, as whoever follows requests sees it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by which the upstream can take up the trace."""

    def end(self, error: BaseException | None) -> None:
        """Note what came of the attempt; `error` is what ended it, if anything did."""


class CallSpan(Protocol):
    """A call of one model, with its retries."""

    def attempt(self, attempt: Attempt) -> AttemptSpan:
        """Follow the next attempt."""

    def end(self, error: BaseException | None) -> None:
        """Note what came of the call, which is what came of its last attempt."""


class Tracer(Protocol):
    """Whoever follows a request on its way to the model; none of it may fail, or take long."""

    def begin(self, attempt: Attempt) -> CallSpan:
        """Follow a call of a model, whose first attempt this is."""


class Untraced:
    """Follows nothing."""

    headers: Final[Mapping[str, str]] = MappingProxyType({})

    def begin(self, _: Attempt, /) -> CallSpan:
        """Do nothing."""
        return self

    def attempt(self, _: Attempt, /) -> AttemptSpan:
        """Do nothing."""
        return self

    def end(self, *_: object) -> None:
        """Do nothing."""
