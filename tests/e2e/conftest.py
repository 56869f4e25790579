"""Fixtures and hooks for the end-to-end tests."""

from __future__ import annotations

from collections import defaultdict

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Use the real clock: a simulated one would not wait for other processes."""
    return "asyncio"


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
