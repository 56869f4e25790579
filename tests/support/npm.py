"""The npm packages of the tests: other people's programs, which run between Parley and its users."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support.installed import need

_ROOT: Final = Path(__file__).parents[2]


def documented(page: str, heading: str) -> str:
    """Return the first program under this heading of a page of the documentation."""
    _, _, section = (_ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")
    found = re.search(r"^```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def install(folder: Path, packages: str = "node") -> None:
    """Install the packages of a folder of tests/clients into this folder."""
    need("npm")
    shutil.copytree(_ROOT / "tests" / "clients" / packages, folder, dirs_exist_ok=True)
    subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True)  # noqa: S607  # the installed npm


def install_examples(folder: Path, *examples: str) -> Path:
    """Copy the examples to this folder, with the contract beside them; install what these examples need."""
    need("npm")
    copied = shutil.copytree(_ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(_ROOT / "contracts" / "chat-api.yaml", copied)
    for example in examples:
        subprocess.run(["npm", "ci", "--silent"], cwd=copied / example, check=True)  # noqa: S607  # the installed npm
    return copied


def run_script(package: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of an npm package."""
    return subprocess.run(["npm", "run", script], cwd=package, capture_output=True, text=True, check=False)  # noqa: S603, S607  # the installed npm
