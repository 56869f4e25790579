"""Owns what the domain asks of a provider, which is where replies come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agents import Model

    from parley.chat.errors import ErrorCode
    from parley.chat.run import Run


class Provider(Protocol):
    """Where replies come from."""

    @property
    def model_name(self) -> str:
        """The name that replies are published under."""

    @property
    def instructions(self) -> str | None:
        """The system prompt."""

    @property
    def temperature(self) -> float | None:
        """The sampling temperature; `None` leaves it to the upstream."""

    @property
    def max_streams(self) -> int:
        """How many replies it is good for at once, where the settings don't say."""

    def model(self, run: Run) -> Model:
        """Make the model for one run, which waits by its deadlines and notes in it how the reply ends.

        Raises:
            ChatError: where the provider cannot serve now.
        """

    async def check(self) -> ErrorCode | None:
        """Tell whether the model can be reached; if not, the error that a request would meet."""
