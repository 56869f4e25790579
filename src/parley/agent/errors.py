"""The error of an agent that Parley cannot run; importing it imports no openai-agents."""

from __future__ import annotations


class AgentError(Exception):
    """Parley cannot run the operator's agent; the message says why, and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"PARLEY_AGENT: {reason}.")
