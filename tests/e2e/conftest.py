"""Fixtures and hooks for the end-to-end tests."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Use the real clock: a simulated one would not wait for other processes."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Run the installed Chromium for all tests of a file."""
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """Open a page that shares no state with those of other tests."""
    async with await browser.new_context() as context:
        yield await context.new_page()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report what the passing tests prove about privacy and each generated client, without what failed elsewhere."""
    said: dict[str, dict[str, dict[str, None]]] = {outcome: defaultdict(dict) for outcome in ("passed", "failed")}
    for outcome, clients in said.items():
        for report in terminalreporter.getreports(outcome):
            for name, word in report.user_properties:
                if name.startswith("client "):
                    clients[name][word] = None
    for name, words in said["passed"].items():
        proven = [word for word in words if word not in said["failed"][name]]
        terminalreporter.write_line(f"{name}: {', '.join(proven) or 'nothing'}")
    for report in terminalreporter.getreports("passed"):
        for name, word in report.user_properties:
            if name == "privacy":
                terminalreporter.write_line(f"privacy: {word}")
