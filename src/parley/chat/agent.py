"""Owns what the domain expects of an agent, which writes the replies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from parley.chat.errors import ErrorCode
    from parley.chat.events import ReplyReasoning, ReplyText
    from parley.chat.messages import Prompt
    from parley.chat.run import Run


class Agent(Protocol):
    """Writes replies."""

    @property
    def model_names(self) -> list[str]:
        """The names of the models that it asks: the first, then the fallback."""

    @property
    def max_streams(self) -> int:
        """The number of replies that it can write at once, unless the settings say otherwise."""

    def answer(self, prompt: Prompt, run: Run) -> AsyncGenerator[ReplyText | ReplyReasoning, None]:
        """Yield the reply as it comes, and note in the run what each request to a model came to.

        Closing the generator stops the model.

        Raises:
            ChatError: if the reply fails; all text that had come by then has been yielded.
        """

    async def check(self) -> ErrorCode | None:
        """Return `None` if a model can be reached, or the error that a request would meet."""
