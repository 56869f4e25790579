"""The messages of a conversation, and the prompt that requests a reply."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["user", "assistant"]


class Message(msgspec.Struct, frozen=True):
    """One turn of the conversation."""

    role: Role
    content: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a reply: the turns, oldest first, the limits on tokens and seconds, and the caller."""

    messages: list[Message]
    max_output_tokens: int
    timeout_s: float
    include_reasoning: bool = False
    caller: str = ""
