"""Owns our own suites of evaluation, and the upstream that the contract suite is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.faults import show_named_fault
from tests.support.upstream import answer

if TYPE_CHECKING:
    from tests.support.upstream import Exchange

_FOLDER: Final = Path(__file__).parents[1] / "evals"
CONTRACT: Final = str(_FOLDER / "contract.yaml")
EMBEDDED: Final = str(_FOLDER / "embedded.yaml")
BASELINE: Final = str(_FOLDER / "baseline.json")

SETTINGS: Final[dict[str, Any]] = {
    "system_prompt": "The tide is high tonight in Zanzibar.",
    "temperature": 0.3,
    "retries": 0,
}
"""Of the Parley that the contract suite is for."""


async def echo_or_fault(exchange: Exchange) -> None:
    """Answer with the request's body, or show the fault that the message names."""
    if exchange.message.endswith("echo"):
        await answer(json.dumps(exchange.json))(exchange)
    else:
        await show_named_fault(exchange)
