"""Defines the mark `process`. A test without it fails if it starts a process, which keeps `just test-quick` fast.

A pytest plugin. It detects all ways to start a process except multiprocessing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_END_TO_END: Final = Path(__file__).parents[1] / "e2e"
# The audit events that Python raises before it starts a process.
_STARTS: Final = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}

_forbidden = False


def _audit(event: str, _: object) -> None:
    if _forbidden and event in _STARTS:
        raise AssertionError("This test starts a process: mark it with `pytest.mark.process`.")


def pytest_configure(config: pytest.Config) -> None:
    """Install the audit hook."""
    config.addinivalue_line(
        "markers", "process: may start a process, as all end-to-end tests may; not in `just test-quick`"
    )
    sys.addaudithook(_audit)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the end-to-end tests."""
    for item in items:
        if item.path.is_relative_to(_END_TO_END):
            item.add_marker("process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Forbid processes in tests without the mark."""
    global _forbidden  # noqa: PLW0603  # an audit hook is global to the interpreter
    _forbidden = item.get_closest_marker("process") is None
    try:
        return (yield)
    finally:
        _forbidden = False
