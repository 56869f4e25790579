"""Fixtures for all tests."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.support.running import CANARY, CANARY_KEY, running
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx

from parley.settings import Secret, Settings

pytest_plugins = ["parley.testing"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run on asyncio: openai-agents knows no other."""
    return "asyncio"


class Logs(logging.Handler):
    """What was written to standard output and standard error."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__()
        self._capture = capture
        self._written = asyncio.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Learn that a line is about to be written; it is there when the loop goes on."""
        self._written.set()

    def lines(self) -> list[dict[str, Any]]:
        """Return the log lines so far."""
        out, err = self._capture.readouterr()
        self.text += out + err
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]

    async def request(self) -> dict[str, Any]:
        """Wait for the line that ends the test's one chat request, and return it."""
        with anyio.fail_after(10):
            while not (lines := [line for line in self.lines() if line["event"] == "request" and not _is_probe(line)]):
                self._written.clear()
                await self._written.wait()
        (line,) = lines
        return line


def _is_probe(line: dict[str, Any]) -> bool:
    return str(line["route"]).startswith("/health")


@pytest.fixture
async def logs(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Logs]:
    """Give what is logged; and let nothing that a message or a key held be part of it, whatever the test does."""
    logs = Logs(capsys)
    logger = logging.getLogger("parley")
    logger.addHandler(logs)
    yield logs
    logger.removeHandler(logs)
    logs.lines()
    assert CANARY not in logs.text
    assert CANARY_KEY not in logs.text


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """Run the scripted upstream."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def make_settings(upstream: ScriptedUpstream) -> Callable[..., Settings]:
    """Make settings that lead to the scripted upstream; everything is logged."""

    def make(**changes: Any) -> Settings:
        defaults: dict[str, Any] = {
            "openai_base_url": upstream.url,
            "openai_api_key": Secret(CANARY_KEY),
            "model": "scripted-1",
            "log_level": "debug",
            "log_format": "json",
        }
        return Settings(**{**defaults, **changes})

    return make


@pytest.fixture
async def client(make_settings: Callable[..., Settings], logs: Logs) -> AsyncIterator[httpx.AsyncClient]:
    """Run Parley on the scripted upstream."""
    async with running(make_settings()) as client:
        yield client
