"""Owns what is known of an attempt, which is one request to one upstream."""

from __future__ import annotations

import msgspec

from parley.chat.events import NO_USAGE, FinishReason, Usage


class Attempt(msgspec.Struct, kw_only=True):
    """Who is asked for what, and what comes of it; whoever reads the response fills that in."""

    model: str
    host: str
    port: int
    max_tokens: int
    temperature: float | None
    is_fallback: bool
    call: int
    """The number of the model call that it belongs to; an agent makes several calls, each with retries."""
    is_reply: bool
    """Whether its answer is part of the reply; what a tool or a guardrail asks is not."""

    was_sent: bool = True
    """False if the request certainly did not reach the upstream."""
    is_answered: bool = False
    """Whether the upstream has begun a response that is not an error."""
    deltas: int = 0
    """Pieces of the answer so far, each about a token."""
    thoughts: int = 0
    """Pieces of what the model thought, each about a token."""
    first_text_s: float | None = None
    """From the start of the attempt to its first piece."""
    finish_reason: FinishReason | None = None
    is_final: bool = False
    """Whether the finish reason stands even if silence or a lost connection follows."""
    usage: Usage | None = None

    def best_usage(self) -> Usage:
        """Return the upstream's usage; failing that, the pieces as an estimate; failing that, nothing known."""
        if self.usage is not None:
            return self.usage
        pieces = self.deltas + self.thoughts
        return Usage.estimate(pieces) if pieces else NO_USAGE
