"""Fixtures for all tests."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from parley.settings import Secret, Settings
from parley.testing.upstream import ScriptedUpstream
from tests.support.canaries import CANARIES, CANARY_KEY
from tests.support.clock import JumpingLoop
from tests.support.logs import Logs
from tests.support.running import running
from tests.support.scripts import call_weather

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    import httpx

pytest_plugins = ["pytester", "tests.support.order", "tests.support.quick"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what importing the tests creates, a million objects that stay, out of each search for garbage.

    A full search of them takes a quarter of a second, and some tests need one to see what is left.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that printed the canary of a message or a key, even if the test checked no log."""
    report = yield
    printed = "".join(text for name, text in report.sections if name.startswith("Captured std"))
    if report.passed and any(canary in printed for canary in CANARIES):
        report.outcome = "failed"
        report.longrepr = "a canary was printed"
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run on asyncio, the only loop that openai-agents supports, with a clock that jumps instead of waiting."""
    return "asyncio", {"loop_factory": JumpingLoop}


@pytest.fixture
def logs() -> Iterator[Logs]:
    """Provide the log output; fail the test if it contains any canary from a message or a key."""
    logs = Logs()
    yield logs
    assert not any(canary in logs.getvalue() for canary in CANARIES)


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> str | None:
    """Return the operator's agent that answers; tests marked `BOTH` run once without an agent and once with one."""
    path: str | None = getattr(request, "param", None)
    return path


@pytest.fixture
async def upstream(agent: str | None) -> AsyncIterator[ScriptedUpstream]:
    """Run the scripted upstream; an agent's first model call calls its tool, and the script answers the second."""
    async with ScriptedUpstream() as upstream:
        if agent is not None:
            upstream.tool_script = call_weather
        yield upstream


@pytest.fixture
def make_settings(upstream: ScriptedUpstream, agent: str | None) -> Callable[..., Settings]:
    """Return a function that makes settings for the scripted upstream, with log level debug."""

    def make(**changes: Any) -> Settings:
        defaults: dict[str, Any] = {
            "agent": agent,
            "openai_base_url": upstream.url,
            "openai_api_key": Secret(CANARY_KEY),
            "model": "scripted-1",
            "retries": 0,
            "log_level": "debug",
            "log_format": "json",
        }
        return Settings(**{**defaults, **changes})

    return make


@pytest.fixture
async def client(make_settings: Callable[..., Settings], logs: Logs) -> AsyncIterator[httpx.AsyncClient]:
    """Run Parley against the scripted upstream."""
    async with running(make_settings(), logs) as client:
        yield client
