"""Runs the tests in random order on several workers, long tests first, and fails the run if a test is lost.

A pytest plugin. pytest-randomly shuffles and prints the seed, pytest-xdist runs the workers.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no type hints

if TYPE_CHECKING:
    from collections.abc import Iterable

# Tests that share something expensive run on one worker. xdist's own marks for this have no effect with pytest 9.2.
_TOGETHER: Final = re.compile(
    r"^tests/(?:e2e/test_(agent|browser|client_floods|clients|deploy|embedded(?:_answers)?|examples|floods|kit|loops"
    r"|node_servers|podman|repeating|start)|integration/test_(faults))\.py::"
    r"(?:\w+\[(openapi-python-client|openapi-generator-python)\b)?"
)
# These modules take the longest. The ones that mostly wait come early too, so that others use the cores meanwhile.
_FIRST: Final = (
    "podman",
    "embedded_answers",
    "proxies",
    "floods",
    "fleet",
    "privacy",
    "clients",
    "node_servers",
    "loops",
)
# Tests spend about half of their time waiting for processes, sockets and timers.
_WORKERS_PER_CORE: Final = 2


class _Units(LoadScopeScheduling):  # type: ignore[misc]  # it has no type hints
    """Sends each worker single tests; tests that share something expensive stay on one worker."""

    def _split_scope(self, nodeid: str) -> str:
        found = _TOGETHER.search(nodeid)
        return nodeid if found is None else str(found.groups())


class _Count:
    """Compares the tests that ran with those that were collected."""

    def __init__(self) -> None:
        self._collected: set[str] = set()
        self._ran: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the collected tests, if there are no workers."""
        self._collected.update(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        """Note the tests that a worker collected."""
        self._collected.update(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that ran or was skipped."""
        if report.when == "teardown":
            self._ran.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail if a test is lost, unless the run stopped early on purpose."""
        was_stopped = bool(session.shouldstop or session.shouldfail)
        if exitstatus == pytest.ExitCode.OK and not was_stopped and self._ran != self._collected:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many tests ran, and which did not."""
        terminalreporter.write_line(f"{len(self._ran)} of the {len(self._collected)} collected tests ran")
        for lost in sorted(self._collected - self._ran)[:10]:
            terminalreporter.write_line(f"ERROR: did not run: {lost}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Register the count, in the controlling process only."""
    config.addinivalue_line("markers", "long: takes more than 5 seconds, so it runs first")
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        config.pluginmanager.register(_Count())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long tests first, and the longest of them before all others, so that none of them delays the end."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    if item.get_closest_marker("long") is None:
        return len(_FIRST) + 1
    name = item.path.stem.removeprefix("test_")
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `--numprocesses=auto`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _WORKERS_PER_CORE * cores


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Units:
    """Return a scheduler that keeps the order."""
    config.option.loadscopereorder = False
    return _Units(config, log)
