"""Owns what becomes of a test whose programs are not installed."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*programs: str) -> None:
    """Skip, and say so, where one of these is not installed; in CI fail instead."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        outcome = pytest.fail if "CI" in os.environ else pytest.skip
        outcome(f"not installed: {', '.join(missing)}")
