"""The search for canaries: it finds a canary in every form in which it may leak."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.canaries import CANARY, Canaries

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    "leak",
    [
        str,
        str.lower,
        repr,
        json.dumps,
        quote,
        lambda canary: canary[5:13],
        lambda canary: canary[-8:].title(),
        *(lambda canary, n=n: base64.b64encode(f"{n * 'x'}{canary}:".encode()).decode() for n in range(4)),
        lambda canary: base64.urlsafe_b64encode(canary[9:20].encode()).decode(),
    ],
)
def test_a_canary_is_found_in_every_form(leak: Callable[[str], str]) -> None:
    """The result names the place that the canary was put into."""
    canaries = Canaries()
    assert canaries["one"] != canaries["another"]
    assert canaries.found_in(f"before {leak(canaries['one'])} after") == {"one"}


def test_what_the_faults_quote_is_found_too() -> None:
    """A text without a canary gives an empty result."""
    assert Canaries().found_in(f"before {CANARY} after") == {"what a fault of the matrix quotes"}
    assert Canaries().found_in("0123456789abcdef" * 4) == set()
