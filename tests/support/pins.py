"""The pins: the version of each package that a clone installs. pyproject.toml lists them, and uv obeys them.

uv.lock has the same versions, but names the registry that each package came from, so it is not committed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]

_LIST: Final = re.compile(r"^((?:build-)?constraint)-dependencies = \[\n.*?^\]", re.MULTILINE | re.DOTALL)


def locked(folder: Path = ROOT) -> list[str]:
    """Return a constraint for each package in uv.lock; if the lock has two versions of one, each has its marker."""
    return [
        f"{package['name']}=={package['version']}{_marker(package)}"
        for package in _read(folder / "uv.lock")["package"]
        if "registry" in package["source"]  # every package except Parley
    ]


def pinned(folder: Path = ROOT) -> list[str]:
    """Return the constraints in pyproject.toml."""
    constraints: list[str] = _read(folder / "pyproject.toml")["tool"]["uv"]["constraint-dependencies"]
    return constraints


def write(constraints: list[str]) -> None:
    """Replace the constraints in pyproject.toml, and the build constraints with those that apply to the build."""
    path = ROOT / "pyproject.toml"
    builders = {re.split(r"[^\w-]", name)[0].replace("_", "-") for name in _read(path)["build-system"]["requires"]}
    lists = {
        "build-constraint": [pin for pin in constraints if pin.partition("==")[0] in builders],
        "constraint": constraints,
    }

    def listed(found: re.Match[str]) -> str:
        lines = "".join(f'    "{pin}",\n' for pin in lists[found[1]])
        return f"{found[1]}-dependencies = [\n{lines}]"

    path.write_text(_LIST.sub(listed, path.read_text()))


def _marker(package: dict[str, Any]) -> str:
    markers = package.get("resolution-markers", [])
    return f" ; {' or '.join(f'({marker})' for marker in markers)}" if markers else ""


def _read(path: Path) -> Any:
    return tomllib.loads(path.read_text())


if __name__ == "__main__":
    write(locked() if sys.argv[1:] == ["write"] else [])
