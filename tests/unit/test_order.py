"""The run of the tests: it fails if a collected test did not run."""

from __future__ import annotations

from pathlib import Path

import pytest

LOSES_ONE = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    return True if item.name == "test_lost" else None
"""


@pytest.mark.process
@pytest.mark.parametrize("workers", ["--numprocesses=0", "--numprocesses=2"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_run_fails_if_a_collected_test_did_not_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str, *, is_lost: bool
) -> None:
    """The run names the lost test, with and without xdist workers."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makeconftest(LOSES_ONE if is_lost else "")
    pytester.makepyfile("def test_lost(): pass\n\ndef test_kept(): pass")
    ran = pytester.runpytest_subprocess("-p", "tests.support.order", "-p", "no:cacheprovider", workers)
    assert ran.ret == (1 if is_lost else 0)
    told = ["1 of the 2 collected tests ran", "*did not run: *::test_lost"] if is_lost else ["2 of the 2 *"]
    ran.stdout.fnmatch_lines(told)
