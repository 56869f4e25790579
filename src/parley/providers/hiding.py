"""Owns the hiding of a key in an upstream's own words, which may quote it escaped, or only in part."""

from __future__ import annotations

import html
import re
import urllib.parse
from typing import Final

_HIDDEN: Final = "***"
# Shorter parts of a key are worth nothing.
_FRAGMENT: Final = 6
_MOST_CHARACTERS: Final = 8192
# Texts are not escaped more often than this.
_MOST_LAYERS: Final = 5

_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([/\"'\\]))")


def hide(key: str, text: str) -> str:
    """Return the start of a text, unescaped, with asterisks instead of the key and of each part of it."""
    plain = _unescaped(text[:_MOST_CHARACTERS])
    if not key:
        return plain
    # A key can hold what looks like an escape; it has been undone in the text, so both forms are looked for.
    forms = [form for form in (key, _unescaped(key)) if form]
    size = min(_FRAGMENT, *map(len, forms))
    parts = {form[start : start + size] for form in forms for start in range(len(form) - size + 1)}
    shown: list[str] = []
    hidden_to = -1
    for place, character in enumerate(plain):
        if plain[place : place + size] in parts:
            if hidden_to < place:
                shown.append(_HIDDEN)
            hidden_to = place + size
        elif place >= hidden_to:
            shown.append(character)
    return "".join(shown)


def _unescaped(text: str) -> str:
    """Undo the escapes of JSON, URLs and HTML, and leave out what cannot be seen."""
    for _ in range(_MOST_LAYERS):
        before = text
        text = "".join(character for character in text if character.isprintable() or character in "\n\t")
        text = html.unescape(urllib.parse.unquote(_ESCAPE.sub(_character, text)))
        if text == before:
            break
    return text


def _character(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else match[3]
