"""What a clone installs is pinned: every package, by what is committed, whatever an index has to offer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.installed import lack, need
from tests.support.pins import ROOT, locked, pinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPLOYED = sorted(ROOT.glob("requirements*.lock"))


def named(lines: Iterable[str]) -> dict[str, Requirement]:
    """Return requirements by name."""
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


PINS = named(pinned())


def asked_for() -> Iterator[Requirement]:
    """Yield all that pyproject.toml asks for, of packages by others."""
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    for lines in (
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *groups.values(),
        PYPROJECT["build-system"]["requires"],
    ):
        yield from (requirement for requirement in map(Requirement, lines) if requirement.name != project["name"])


def version(pin: Requirement) -> str:
    """Return the one version that a pin allows."""
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_every_package_that_a_clone_installs_is_pinned_and_no_other() -> None:
    """What uv has resolved for this clone, for every platform, is the list of pins; `just lock` writes it."""
    if not (ROOT / "uv.lock").exists():
        lack("uv has not locked this clone: run the tests by `uv run just test`")
    assert pinned() == locked()


def test_a_pin_allows_what_is_asked_for() -> None:
    """For Parley, its extras, the groups and the build."""
    for requirement in asked_for():
        assert version(PINS[canonicalize_name(requirement.name)]) in requirement.specifier, requirement
    for pin in PYPROJECT["tool"]["uv"]["build-constraint-dependencies"]:
        assert Requirement(pin) == PINS[canonicalize_name(Requirement(pin).name)]
    builders = named(PYPROJECT["tool"]["uv"]["build-constraint-dependencies"])
    assert builders.keys() == named(PYPROJECT["build-system"]["requires"]).keys()


@pytest.mark.parametrize("path", DEPLOYED, ids=lambda path: path.stem)
def test_a_deployment_installs_what_is_pinned(path: Path) -> None:
    """Each package has its pin's version, and a hash."""
    packages = re.split(r"^(?=\S)", path.read_text(), flags=re.MULTILINE)[1:]
    assert packages
    for package in packages:
        line, *hashes = package.replace("\\\n", "").strip().split(" --hash=")
        requirement = Requirement(line)
        assert version(requirement) == version(PINS[canonicalize_name(requirement.name)])
        assert hashes


def wheel(folder: Path, name: str, version: str, requires: Iterable[str] = ()) -> None:
    """Add a wheel without content to an index."""
    stem = f"{name.replace('-', '_')}-{version}"
    links = folder / canonicalize_name(name) / "index.html"
    links.parent.mkdir(exist_ok=True)
    with links.open("a") as page:
        page.write(f'<a href="../{stem}-py3-none-any.whl">{stem}-py3-none-any.whl</a>\n')
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    metadata += [f"Requires-Dist: {required}\n" for required in requires]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "".join(metadata))
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what the recipes read, as a fresh clone has it: without uv.lock."""
    clone = tmp_path / "clone"
    for name in ("pyproject.toml", "justfile", "README.md", "tests/__init__.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / "tests" / "support", clone / "tests" / "support")
    return clone


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Make an index of wheels by these names that has a newer release of each, too; one of them wants all others."""
    index = tmp_path / "index"
    index.mkdir()
    everything = [name for name in PINS if name != "litestar"]
    for name, pin in PINS.items():
        for release in (version(pin), f"{version(pin)}.post999"):
            wheel(index, name, release, everything if name == "litestar" else ())
    return index


def recipe(clone: Path, index: Path, *command: str) -> str:
    """Run a recipe in the clone with no other index; return the pins."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV"))}
    there = {"UV_DEFAULT_INDEX": index.as_uri(), "UV_CACHE_DIR": str(index / "cache"), "UV_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603  # a recipe of this project
        ["just", *command],  # noqa: S607  # the just that is installed
        cwd=clone,
        env={**ours, **there},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (clone / "pyproject.toml").read_text()


def test_a_newer_release_in_an_index_changes_nothing_until_it_is_asked_for(clone: Path, index: Path) -> None:
    """`just lock` in a fresh clone keeps every pin; `just upgrade` moves one, or all."""
    need("just", "uv")
    before = (clone / "pyproject.toml").read_text()
    assert recipe(clone, index, "lock") == before

    one = re.sub(r'"certifi==(.+?)"', r'"certifi==\1.post999"', before)
    assert recipe(clone, index, "upgrade", "certifi") == one
    assert recipe(clone, index, "lock") == one

    recipe(clone, index, "upgrade")
    exact = {canonicalize_name(requirement.name) for requirement in asked_for() if "==" in str(requirement.specifier)}
    upgraded = named(pinned(clone))
    assert {name for name, pin in upgraded.items() if not version(pin).endswith(".post999")} == exact
    assert upgraded.keys() == PINS.keys()
