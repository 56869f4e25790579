"""Redact log events: hide secrets, and make all text printable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

_HIDDEN: Final = "***"
_LEFT_OUT: Final = "..."

_DEEPEST: Final = 8
_LARGEST_INT_BITS: Final = 64

_SECRET_NAME: Final = re.compile(
    r"authorization|(api|private|secret|access)[-_]?key|^key$|cookie|credential|pass(word|phrase)|secret|(^|[-_])(token|pwd)$",
    re.IGNORECASE,
)
_SECRET_VALUE: Final = re.compile(
    r"(?i:bearer)\s+[\w.~+/=-]+"
    r"|\bsk-[\w-]{6,}"
    r"|(?i:authorization|api[-_ ]?key|pass(?:word|phrase)|pwd|secret|token)[\"']?\s*[:=]\s*[\"']?"
    r"(?i:basic\s+|digest\s.*)?[^\s\"',;&]{8,}"
    r"|(?i:cookie)[\"']?\s*[:=].*"
    r"|(?i:authorization|key|pass(?:word|phrase)|pwd|secret|token)(?:\W{1,5}|\s+is\s+)[\w+/=-]{20,}"
    r"|://[^\s/@]+@"
)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Hide secrets: every value under a secret's name, and what looks like a secret anywhere else.

    What is left is made printable, so that no text can end a line or control a terminal.
    """
    return {legible(name): _redacted(name, value, 0) for name, value in event.items()}


def _redacted(name: object, value: Any, depth: int) -> Any:  # noqa: PLR0911  # one return for each kind of value
    match value:
        case None | bool():
            return value
        case _ if _is_secret(_text(name)):
            return _HIDDEN
        case float():
            return value
        case int() if value.bit_length() <= _LARGEST_INT_BITS:
            return value
        case Mapping() | list() | tuple() | set() | frozenset() if depth == _DEEPEST:
            return _LEFT_OUT
        case Mapping():
            return {legible(key): _redacted(key, member, depth + 1) for key, member in value.items()}
        case [str() | bytes() as key, member]:  # a name and a value, such as a header
            return [legible(key), _redacted(key, member, depth + 1)]
        case list() | tuple() | set() | frozenset():
            return [_redacted("", member, depth + 1) for member in value]
        case _:
            return legible(value)


def legible(value: object) -> str:
    """Return a value as printable text, without what looks like a secret."""
    text = _SECRET_VALUE.sub(_HIDDEN, _text(value))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(value: object) -> str:
    try:
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    except Exception:  # noqa: BLE001  # no error may keep the rest of the line from being logged
        return f"<{type(value).__name__}>"


@lru_cache(1000)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None
