"""Our own evaluation suites, and the upstream that the contract suite needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from parley.testing.upstream import answer
from tests.support.faults import show_named

if TYPE_CHECKING:
    from parley.testing.exchange import Exchange

_FOLDER: Final = Path(__file__).parents[1] / "evals"
CONTRACT: Final = str(_FOLDER / "contract.yaml")
EMBEDDED: Final = str(_FOLDER / "embedded.yaml")
BASELINE: Final = str(_FOLDER / "baseline.json")

SETTINGS: Final[dict[str, Any]] = {
    "system_prompt": "The tide is high tonight in Zanzibar.",
    "temperature": 0.3,
    "retries": 0,
}
"""The settings of the Parley that the contract suite needs."""

VARIABLES: Final = {f"PARLEY_{name.upper()}": str(value) for name, value in SETTINGS.items()}
"""The same settings, for a process."""

# A file of Parley, a line in it, and the line that replaces it.
LOSES_HISTORY: Final = (
    "wire/schema.py",
    "*(Message(turn.role, turn.content) for turn in self.history or ()),",
    "",
)
LOSES_FIRST_TEXT: Final = (
    "providers/answer.py",
    "texts += filter(None, (delta.content, delta.refusal))",
    "texts += filter(None, (delta.content, delta.refusal)) if attempt.deltas else ()",
)


def broken_parley(folder: Path, file: str, line: str, broken: str) -> str:
    """Copy Parley with one line replaced; return the PYTHONPATH for the copy."""
    package = Path(__file__).parents[2] / "src" / "parley"
    shutil.copytree(package, folder / "parley", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "parley" / file
    code = path.read_text()
    assert code.count(line) == 1, f"{file} has changed: break another line of it"
    path.write_text(code.replace(line, broken))
    return str(folder)


async def echo_or_fault(exchange: Exchange) -> None:
    """Answer with the request's body, or show the fault that the message names."""
    if exchange.message.endswith("echo"):
        await answer(json.dumps(exchange.json))(exchange)
    else:
        await show_named(exchange)
