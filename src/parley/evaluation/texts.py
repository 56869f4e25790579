"""What an answer's text shows: its last number, its script, loops, refusals and quotations."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

Script = Literal["arabic", "cyrillic", "devanagari", "greek", "han", "hangul", "hebrew", "kana", "latin", "thai"]

# How Unicode names the letters of a script, if not by the script's own name.
_SCRIPTS: Final = {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana"}
# The required share of an answer's letters; a name or a unit may be in another script.
_SHARE_OF_SCRIPT: Final = 0.8

_NUMBER: Final = re.compile(r"[-\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")

_REFUSAL: Final = re.compile(
    r"\bI(?: a|')m (?:sorry|afraid|not able|unable)|\b(?:I|we) (?:can(?:no|')t|can not|won't|will not|must decline)\b"
    r"|\b(?:unable|not able|not allowed) to (?:help|assist|provide|answer|comply|share|give|fulfil)"
    r"|\bI (?:don't|do not) have (?:access|any information|that information|the ability)",
    re.IGNORECASE,
)

_LOOPS: Final = 3
_SHORTEST_LOOP: Final = 20
"""The shortest length of all rounds together, in characters."""
_TAIL: Final = 4000
"""The number of characters at the end that are examined; the time taken grows with its square."""

_WORD: Final = re.compile(r"\w+")
_QUOTED_WORDS: Final = 5


def last_number(text: str) -> float | None:
    """Return the last number in a text, which is usually the answer's result; `None` if there is no number."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def is_in_script(text: str, scripts: set[Script]) -> bool:
    """Return whether at least four of five letters belong to one of the scripts."""
    letters = [character for character in text if character.isalpha()]
    matching = sum(_script(letter) in scripts for letter in letters)
    return bool(letters) and matching >= _SHARE_OF_SCRIPT * len(letters)


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _SCRIPTS.get(name, name.lower())


def refuses(text: str) -> bool:
    """Return whether a text refuses a request, in one of the usual English phrases."""
    return _REFUSAL.search(text.replace("\u2019", "'")) is not None


def quotes(text: str, source: str) -> bool:
    """Return whether a text has five consecutive words of another text, or all its words if they are fewer."""
    words, said = _WORD.findall(source.casefold()), _WORD.findall(text.casefold())
    length = min(_QUOTED_WORDS, len(words))
    return length > 0 and not _runs(words, length).isdisjoint(_runs(said, length))


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def ends_in_loop(text: str) -> bool:
    """Return whether a text ends with a phrase that it repeats at least three times.

    Two phrases with letters count as the same if only their numbers differ, as in a list that keeps counting.
    """
    text = " ".join(text.split())[-_TAIL:]
    counted = re.sub(r"[0-9]+", "0", text)
    return _period(text) is not None or any(c.isalpha() for c in _period(counted) or "")


def _period(text: str) -> str | None:
    """Return the phrase that a text repeats to its end, or `None`."""
    for size in range(1, len(text) // _LOOPS + 1):
        rounds = max(_LOOPS, -(-_SHORTEST_LOOP // size))
        unit = text[-size:]
        if text.endswith(unit * rounds):
            return unit
    return None
