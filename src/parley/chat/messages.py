"""Owns the conversation as the domain sees it: messages, and the prompt that asks for a reply."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["user", "assistant"]


class Message(msgspec.Struct, frozen=True):
    """One turn of the conversation."""

    role: Role
    content: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply is asked for: the turns, oldest first, what the reply may cost, and who asks."""

    messages: list[Message]
    max_output_tokens: int
    timeout_s: float
    include_reasoning: bool = False
    caller: str = ""
