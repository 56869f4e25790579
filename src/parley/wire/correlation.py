"""The correlation ID: the header that carries it, and which IDs of callers Parley keeps."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Final

HEADER: Final = b"x-correlation-id"

_ACCEPTED: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def kept_correlation_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the caller's own ID if Parley keeps it, otherwise `None`; the headers' names are in lower case."""
    for name, value in headers:
        if name == HEADER and _ACCEPTED.fullmatch(value):
            return value.decode()
    return None


def new_correlation_id() -> str:
    """Return a new ID for a request that has none."""
    return uuid.uuid4().hex
