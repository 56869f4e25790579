"""Every package that a clone installs is pinned by committed files, whatever an index offers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections import defaultdict
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


def versions(lines: Iterable[str]) -> dict[str, set[str]]:
    """Return the versions that the pins allow, by name: one, or one per platform."""
    allowed: dict[str, set[str]] = defaultdict(set)
    for pin in map(Requirement, lines):
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        allowed[canonicalize_name(pin.name)].add(specifier.version)
    return allowed


PINS = versions(pinned())


def asked_for() -> Iterator[Requirement]:
    """Yield all third-party requirements of pyproject.toml."""
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    for lines in (
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *groups.values(),
        PYPROJECT["build-system"]["requires"],
    ):
        yield from (requirement for requirement in map(Requirement, lines) if requirement.name != project["name"])


def test_every_package_that_a_clone_installs_is_pinned_and_no_other() -> None:
    """The pins are what uv has resolved for this clone, for all platforms."""
    if not (ROOT / "uv.lock").exists():
        lack("uv has not locked this clone: run the tests with `uv run just test`")
    assert pinned() == locked(), "run `just lock`"


def test_a_pin_allows_what_is_asked_for() -> None:
    """The requirements are those of Parley, its extras, the groups and the build."""
    for requirement in asked_for():
        pins = PINS[canonicalize_name(requirement.name)]
        assert pins, requirement
        assert all(version in requirement.specifier for version in pins), requirement
    builders = versions(PYPROJECT["tool"]["uv"]["build-constraint-dependencies"])
    assert builders == {name: PINS[name] for name in map(canonicalize_name, _names(PYPROJECT["build-system"]))}


def _names(build_system: dict[str, list[str]]) -> list[str]:
    return [Requirement(line).name for line in build_system["requires"]]


@pytest.mark.process
def test_a_deployment_installs_what_is_pinned(tmp_path: Path) -> None:
    """No package is missing, and every package has a hash; additional hashes make no difference."""
    need("just", "uv")
    subprocess.run(  # noqa: S603  # a recipe of this project
        ["just", "export-locks", str(tmp_path), "--frozen"],  # noqa: S607  # the installed just
        cwd=ROOT,
        check=True,
    )
    exported = {path.name: without_hashes(path.read_text()) for path in tmp_path.glob("*.lock")}
    committed = {path.name: path.read_text() for path in ROOT.glob("requirements*.lock")}
    assert {name: without_hashes(text) for name, text in committed.items()} == exported, "run `just lock`"
    for text in committed.values():
        assert all("--hash=sha256:" in package for package in re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:])


def without_hashes(text: str) -> list[str]:
    """Return the packages of a requirements file."""
    return re.findall(r"^(\S+==[^\\\n]+)", text, re.MULTILINE)


def wheel(folder: Path, name: str, version: str, requires: Iterable[str] = ()) -> None:
    """Add an empty wheel to an index."""
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
    """Copy what the recipes read, as in a fresh clone: without uv.lock."""
    clone = tmp_path / "clone"
    for name in ("pyproject.toml", "justfile", "tests/__init__.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / "tests" / "support", clone / "tests" / "support")
    return clone


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Make an index with the pinned release and a newer one of each package; one package requires all others."""
    index = tmp_path / "index"
    index.mkdir()
    everything = [name for name in PINS if name != "litestar"]
    for name, pins in PINS.items():
        for release in (*pins, *(f"{version}.post999" for version in pins)):
            wheel(index, name, release, everything if name == "litestar" else ())
    return index


def recipe(clone: Path, index: Path, *command: str, exit_code: int = 0) -> str:
    """Run a recipe in the clone, with this index only; return the file with the pins."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV"))}
    there = {"UV_DEFAULT_INDEX": index.as_uri(), "UV_CACHE_DIR": str(index / "cache"), "UV_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603  # a recipe of this project
        ["just", *command],  # noqa: S607  # the installed just
        cwd=clone,
        env={**ours, **there},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return (clone / "pyproject.toml").read_text()


@pytest.mark.process
def test_a_newer_release_in_an_index_changes_nothing_until_it_is_asked_for(clone: Path, index: Path) -> None:
    """`just lock` in a fresh clone keeps every pin; `just upgrade` changes one pin or all, or if it fails, none."""
    need("just", "uv")
    before = (clone / "pyproject.toml").read_text()
    assert recipe(clone, index, "lock") == before
    assert locked(clone) == pinned(clone)

    one = re.sub(r'"certifi==(.+?)"', r'"certifi==\1.post999"', before)
    assert recipe(clone, index, "upgrade", "certifi") == one
    assert recipe(clone, index, "lock") == one
    assert recipe(clone, index / "nothing", "upgrade", exit_code=1) == one

    # After a pull, uv.lock may be older than the pins.
    (clone / "pyproject.toml").write_text(before)
    recipe(clone, index, "lock")
    (clone / "pyproject.toml").write_text(one)
    assert recipe(clone, index, "upgrade", "idna") == re.sub(r'"idna==(.+?)"', r'"idna==\1.post999"', one)

    recipe(clone, index, "upgrade")
    exact = {canonicalize_name(requirement.name) for requirement in asked_for() if "==" in str(requirement.specifier)}
    upgraded = versions(pinned(clone))
    assert {name for name, pins in upgraded.items() if not all(pin.endswith(".post999") for pin in pins)} == exact
    assert upgraded.keys() == PINS.keys()
