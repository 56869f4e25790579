"""Owns what becomes of a test that lacks what it needs."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need(*programs: str) -> None:
    """Skip, and say so, where one of these is not installed; in CI fail instead."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        lack(f"not installed: {', '.join(missing)}")


def lack(reason: str) -> NoReturn:
    """Skip for this reason; in CI fail instead."""
    outcome = pytest.fail if "CI" in os.environ else pytest.skip
    outcome(reason)
