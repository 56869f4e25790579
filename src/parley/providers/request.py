"""Owns what an upstream is asked for, before its own names and defaults are filled in."""

from __future__ import annotations

from typing import Any

import msgspec


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a chat completion."""

    messages: list[Any]
    """As the chat completions API has them, without the system prompt."""
    max_tokens: int
    instructions: str | None = None
    """The system prompt; `None` stands for the upstream's default."""
    temperature: float | None = None
    """`None` stands for the upstream's default."""
    model: str | None = None
    """`None` stands for the upstream's default; a fallback always uses its own."""
    is_reply: bool = True
    """Whether the answer is part of a reply, and not what a tool or a guardrail wants to know."""
    include_reasoning: bool = False
    """Whether somebody wants to see what the model thinks."""
    options: dict[str, Any] = {}
    """Other fields of the API, such as `tools`."""
