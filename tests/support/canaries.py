"""The canaries: strings that tests put into everything that must stay inside, and the search for them."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "canary-5Xq9-text"
CANARY_KEY = "sk-canary-5Xq9-key"
CANARIES = (CANARY, CANARY_KEY)

_FRAGMENT = 8


class Canaries:
    """A separate canary for each place, so that a leak names its source."""

    def __init__(self) -> None:
        self.places: set[str] = set()
        self._places: dict[str, str] = {}
        for canary in CANARIES:
            self._watch("what a fault of the matrix quotes", canary)

    def __getitem__(self, place: str) -> str:
        """Return the canary for this place: letters and digits, which no escaping changes."""
        canary = base64.b32encode(hashlib.blake2b(place.encode(), digest_size=20).digest()).decode()
        if place not in self.places:
            self._watch(place, canary)
        return canary

    def found_in(self, text: str) -> set[str]:
        """Return the places whose canary is in the text: any eight characters of it, or six of them in base64."""
        text = text.lower()
        fragments = (text[start : start + _FRAGMENT] for start in range(len(text) - _FRAGMENT + 1))
        return {self._places[fragment] for fragment in fragments if fragment in self._places}

    def _watch(self, place: str, canary: str) -> None:
        self.places.add(place)
        for form in (canary, *_in_base64(canary.encode())):
            for start in range(len(form) - _FRAGMENT + 1):
                self._places[form[start : start + _FRAGMENT].lower()] = place


def _in_base64(data: bytes) -> Iterator[str]:
    """Yield the base64 forms of the data inside something longer; they depend on its offset there."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data + bytes(-(before + len(data)) % 3)).decode()
        yield encoded[4 if before else 0 : len(encoded) - 4]
