"""What happens to a test that lacks a program or another requirement."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(*programs: str) -> None:
    """Skip the test if one of these programs is not installed; in CI, fail it."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        lack(f"not installed: {', '.join(missing)}")


def lack(reason: str) -> NoReturn:
    """Skip the test for this reason; in CI, fail it."""
    outcome = pytest.fail if "CI" in os.environ else pytest.skip
    outcome(reason)
