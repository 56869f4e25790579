"""Attempts for tests that send no request."""

from __future__ import annotations

from parley.chat.run import Attempt


def new_attempt(call: int = 0) -> Attempt:
    """Return an attempt that has just begun."""
    return Attempt(
        model="m-1",
        host="127.0.0.1",
        port=80,
        max_tokens=100,
        temperature=None,
        is_fallback=False,
        call=call,
        is_reply=True,
    )
