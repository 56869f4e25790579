"""Fixtures for tests that configure the logs and read what is written."""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from parley.settings import Settings
from parley.telemetry import logs as telemetry
from tests.support.logs import Logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def output() -> Logs:
    """Return the log output; each test itself asserts that it contains no canary."""
    return Logs()


@pytest.fixture
def configure(output: Logs) -> Iterator[Callable[..., None]]:
    """Return a function that configures the logs; restore them at the end."""
    root = logging.getLogger()
    handlers = root.handlers

    def configure(**changes: Any) -> None:
        with redirect_stdout(output):
            telemetry.configure(Settings(**{"log_format": "json", "log_level": "debug", **changes}))

    yield configure
    root.handlers = handlers
    logging.captureWarnings(capture=False)
