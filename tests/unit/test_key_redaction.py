"""Hiding the key in an upstream's error text before it is logged, in whatever form it appears."""

from __future__ import annotations

import base64
import html
import json
import re
import urllib.parse
from typing import TYPE_CHECKING

import pytest

from parley.providers.key_redaction import redact_key

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk-proj/aB3+dE6=fG9&hI2<jK5>"


def _entities(text: str) -> str:
    return "".join(f"&#x{ord(character):x};" for character in text)


def _code_points(text: str) -> str:
    return "".join(f"\\u{ord(character):04X}" for character in text)


@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        lambda key: json.dumps(key).replace("/", "\\/"),
        _code_points,
        lambda key: json.dumps(_code_points(key)),
        lambda key: json.dumps(json.dumps({"key": key})),
        lambda key: urllib.parse.quote(key, safe=""),
        lambda key: re.sub("%..", lambda escape: escape[0].lower(), urllib.parse.quote(key, safe="")),
        lambda key: urllib.parse.quote(urllib.parse.quote(key, safe=""), safe=""),
        html.escape,
        _entities,
        "\0".join,
        "\u200b".join,
        lambda key: key + key,
        lambda key: key[:10],
        lambda key: key[-10:],
        lambda key: f"{key[:9]}...{key[-9:]}",
    ],
)
def test_a_key_is_hidden_however_it_is_escaped_or_cut(write: Callable[[str], str]) -> None:
    """No six consecutive characters of the key remain; the words around it do."""
    shown = redact_key(KEY, f"Incorrect key: {write(KEY)} was sent.")
    assert shown.startswith("Incorrect key: ")
    assert shown.endswith(" was sent.")
    assert "***" in shown
    assert not any(KEY[start : start + 6] in shown for start in range(len(KEY) - 5))


@pytest.mark.parametrize("key", ["p&ltq&gtr&amps&copyt", r"sk\u0041bcdef\x42", "sk%41bcdefgh%42xyz", "a%2Fb%2Fc%2Fd"])
def test_a_key_that_looks_escaped_itself_is_hidden(key: str) -> None:
    """Undoing the escapes in the text must not keep such a key from being found."""
    assert redact_key(key, f"the key {key}.") == "the key ***."


@pytest.mark.parametrize(
    "write",
    [
        str.upper,
        str.swapcase,
        " ".join,
        lambda key: "-".join(key[start : start + 5] for start in range(0, len(key), 5)),
        lambda key: key.encode().hex(),
        lambda key: base64.b64encode(key.encode()).decode(),
        lambda key: base64.urlsafe_b64encode(f"Bearer {key}".encode()).decode(),
        lambda key: "".join(chr(ord(character) + 0xFEE0) for character in key),
    ],
)
def test_a_text_that_quotes_the_key_in_other_letters_is_hidden_as_a_whole(write: Callable[[str], str]) -> None:
    """Parley cannot tell where the key begins in such a text."""
    key = "sk-proj-aB3dE6fG9hI2jK5lM8nO1"
    assert redact_key(key, f"Incorrect key: {write(key)} was sent.") == "***"
    assert redact_key(key, "Incorrect key: none was sent.") == "Incorrect key: none was sent."


def test_a_short_key_is_hidden_as_a_whole() -> None:
    """A part of a short key is not hidden."""
    assert redact_key("abc", "abc, abd, abcabc") == "***, abd, ***"


def test_without_a_key_the_words_are_shown_as_they_are() -> None:
    """The text stays unchanged, including its line break."""
    assert redact_key("", "It is 5 < 6.\nTry again.") == "It is 5 < 6.\nTry again."
