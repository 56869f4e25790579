"""API keys in requests: read the key from the Authorization header."""

from __future__ import annotations

from typing import Final

UNKNOWN_KEY: Final = "Unknown API key."
"""The error's `detail` if the request's key is unknown."""

_SCHEME: Final = "bearer"


def sent_key(authorization: str) -> str | None:
    """Return the key in the value of an Authorization header; `None` if there is none."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() or None if scheme.lower() == _SCHEME else None
