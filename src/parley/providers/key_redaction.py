"""Hide a key in an upstream's text, which may quote the key escaped or only in part."""

from __future__ import annotations

import base64
import html
import re
import unicodedata
import urllib.parse
from typing import Final

_HIDDEN: Final = "***"
# Shorter parts of a key are useless to an attacker.
_FRAGMENT: Final = 6
_LONG_FRAGMENT: Final = 10
_MOST_CHARACTERS: Final = 8192
# No text is escaped more times than this.
_MOST_LAYERS: Final = 5

_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([/\"'\\]))")


def redact_key(key: str, text: str) -> str:
    """Return the start of a text, unescaped, with asterisks in place of the key and of each part of it.

    If only a comparison of letters and digits finds the key in the text, all of the text is hidden.
    """
    plain = _unescaped(text[:_MOST_CHARACTERS])
    if not key:
        return plain
    # A key may contain what looks like an escape, which has been undone in the text: look for both forms.
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
    result = "".join(shown)
    return _HIDDEN if _is_quoted(key, result) else result


def _is_quoted(key: str, text: str) -> bool:
    """Return whether a text holds part of the key in other letter forms, with characters in between, or encoded."""
    folded = _folded(text)
    written = [_folded(key), key.encode().hex()]
    # Base64 without its first and last characters, which depend on the text beside the key.
    written += [_folded(base64.b64encode(b"." * shift + key.encode()).decode())[4:-4] for shift in range(3)]
    return any(
        form[start : start + _LONG_FRAGMENT] in folded
        for form in written
        for start in range(len(form) - _LONG_FRAGMENT + 1)
    )


def _folded(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def _unescaped(text: str) -> str:
    """Undo the escapes of JSON, URLs and HTML, and remove invisible characters."""
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
