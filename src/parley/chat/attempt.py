"""Owns what is known of an attempt, which is one request to one upstream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parley.chat.events import NO_USAGE, Usage

if TYPE_CHECKING:
    from parley.chat.events import FinishReason


class Attempt:
    """What one request to an upstream came to; whoever reads the response fills it in."""

    def __init__(self, model: str, *, is_fallback: bool = False, call: int = 0, is_reply: bool = True) -> None:
        self.model = model
        self.is_fallback = is_fallback
        self.is_reply = is_reply
        """Whether its answer is part of the reply; what a tool or a guardrail asks is not."""
        self.call = call
        """The number of the model call that it belongs to; an agent makes several calls, each with retries."""
        self.was_sent = True
        """False if the request certainly did not reach the upstream."""
        self.is_answered = False
        """Whether the upstream has begun a response that is not an error."""
        self.deltas = 0
        """Pieces of the answer so far, each about a token."""
        self.first_text_s: float | None = None
        """From the start of the attempt to its first piece."""
        self.finish_reason: FinishReason | None = None
        self.is_final = False
        """Whether the finish reason stands even if silence or a lost connection follows."""
        self.usage: Usage | None = None

    def best_usage(self) -> Usage:
        """Return the upstream's usage; failing that, the deltas as an estimate; failing that, nothing known."""
        if self.usage is not None:
            return self.usage
        return Usage.estimate(self.deltas) if self.deltas else NO_USAGE
