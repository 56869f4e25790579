"""The interfaces through which the domain and the providers report to metrics and traces."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parley.chat.run import Attempt


class Watch(Protocol):
    """Receives measurements, such as metrics; no method may raise an error or block."""

    def replying(self, change: int, /) -> None:
        """Add `change`, which can be negative, to the number of open replies."""

    def waiting(self, change: int, /) -> None:
        """Add `change`, which can be negative, to the number of prompts in the queue."""

    def gap(self, seconds: float, /) -> None:
        """Note the seconds between two successive texts of a reply."""

    def upstream_answered(self, model: str, status: int | None) -> None:
        """Note the HTTP status of an upstream's response for a model; `None` means that it could not be reached."""

    def retrying(self, model: str) -> None:
        """Note that Parley is about to retry the same model."""

    def embedded_model_restarts(self) -> None:
        """Note that Parley is about to restart the embedded model."""


class AttemptSpan(Protocol):
    """The span of one attempt in a trace."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that let the upstream continue the trace."""

    def end(self, error: BaseException | None) -> None:
        """Note the result of the attempt; `error` is the exception that ended it, or `None`."""


class CallSpan(Protocol):
    """The span of one model call in a trace, including its retries."""

    def attempt(self, attempt: Attempt) -> AttemptSpan:
        """Begin the span of the next attempt."""

    def end(self, error: BaseException | None) -> None:
        """Note the last attempt's result as the call's; `error` is the exception that ended it, or `None`."""


class Tracer(Protocol):
    """Traces a request on its way to the model; no method may raise an error or block."""

    def begin(self, attempt: Attempt) -> CallSpan:
        """Begin the span of a model call; `attempt` is its first attempt."""


class Untraced:
    """A tracer that records nothing."""

    headers: Final[Mapping[str, str]] = MappingProxyType({})

    def begin(self, _: Attempt, /) -> CallSpan:
        """Return this tracer, which is its own span."""
        return self

    def attempt(self, _: Attempt, /) -> AttemptSpan:
        """Return this tracer, which is its own span."""
        return self

    def end(self, *_: object) -> None:
        """Do nothing."""
