"""The matrix of upstream faults: both operations, and what the caller and the operator learn of each fault."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from msgspec import UNSET

from parley.chat.errors import ErrorCode
from parley.chat.events import UsageSource
from parley.settings import Secret, Settings
from parley.testing.upstream import ScriptedUpstream
from parley.wire.errors import STATUS
from parley.wire.schema import ChatResponse, DoneChunk, ErrorChunk, StartChunk, TextChunk
from tests.support.canaries import CANARIES, CANARY, CANARY_KEY
from tests.support.faults import TOLD, Told, show_named
from tests.support.logs import Logs
from tests.support.running import FORECASTER, problem, running, stream
from tests.support.scripts import call_weather

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx


PLAIN, FIRST, SECOND = "plain", "an agent's first model call", "an agent's second model call"
CASES = [
    *((PLAIN, path, name) for path in ("/chat", "/chat/complete") for name in TOLD),
    *((where, "/chat", name) for where in (FIRST, SECOND) for name in TOLD),
]


@pytest.fixture(scope="module")
def where(request: pytest.FixtureRequest) -> str:
    """Return the model call that has the fault."""
    return str(request.param)


@pytest.fixture(scope="module")
async def faulty(where: str) -> AsyncIterator[ScriptedUpstream]:
    """Run the faulty upstream."""
    async with ScriptedUpstream() as upstream:
        upstream.script = show_named
        if where == SECOND:
            upstream.tool_script = call_weather
        yield upstream


@pytest.fixture(scope="module")
def all_logs(where: str) -> Logs:  # noqa: ARG001  # the logs are per place
    """Hold the logs of all cases."""
    return Logs()


@pytest.fixture(scope="module")
async def parley(faulty: ScriptedUpstream, all_logs: Logs, where: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run one Parley for all cases: no case may leave anything behind for the next."""
    settings = Settings(
        agent=None if where == PLAIN else FORECASTER,
        openai_base_url=faulty.url,
        openai_api_key=Secret(CANARY_KEY),
        model="scripted-1",
        retries=0,
        hold_headers_s=60,  # a failure before the first text is an HTTP error, however late
        log_level="debug",
        log_format="json",
    )
    async with running(settings, all_logs) as client:
        yield client
    assert not any(canary in all_logs.getvalue() for canary in CANARIES)


@pytest.mark.parametrize(("where", "path", "name"), CASES, indirect=["where"], scope="module")
async def test_every_fault_is_told_as_what_it_is(
    parley: httpx.AsyncClient, faulty: ScriptedUpstream, all_logs: Logs, where: str, path: str, name: str
) -> None:
    """Status or last chunk, text, usage and log line are as expected; no request goes on upstream."""
    told = TOLD[name]
    if where != PLAIN and name == "tool_call":  # only an agent has tools, and this agent lacks the one that is called
        told = replace(told, retryable=True, source=UsageSource.ESTIMATE)
    if where == SECOND and told.source is UsageSource.NONE:  # the first call's usage is known, the total is not
        told = replace(told, source=UsageSource.ESTIMATE)
    correlation_id = uuid.uuid4().hex
    before = len(faulty.exchanges)
    request = {"message": f"{CANARY} {name}"}
    headers = {"X-Correlation-ID": correlation_id}

    with anyio.fail_after(60):
        if path == "/chat" and told.text is not None:
            check_stream(await stream(parley, request, headers=headers), told)
        else:
            check_response(await parley.post(path, json=request, headers=headers), told)
        (exchange,) = faulty.exchanges[before:]
        await exchange.over.wait()
        line = await all_logs.line_of(correlation_id)
        if told.code in {ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT, ErrorCode.UPSTREAM_IDLE_TIMEOUT}:
            await exchange.connection.is_closed.wait()
            assert exchange.connection.closed_by == "client"

    is_http_error = told.code is not None and (told.text is None or path == "/chat/complete")
    assert line["status"] == (STATUS[told.code] if told.code and is_http_error else 200)
    assert line["outcome"] == ("completed" if told.code is None else "failed")
    assert line.get("error_code") == told.code
    assert line.get("upstream_status") == told.upstream_status
    assert line["usage_source"] == told.source
    assert line["output_tokens"] is None or line["output_tokens"] > 0
    assert line["attempts"] == (2 if where == SECOND else 1)
    assert line["level"] == ("warning" if told.code and STATUS[told.code] >= 500 else "info")
    assert not [line for line in all_logs.lines("unexpected_error") if line["correlation_id"] == correlation_id]


def check_stream(chunks: list[Any], told: Told) -> None:
    """Check that a whole stream is as it must be."""
    start, *texts, last = chunks
    assert isinstance(start, StartChunk)
    assert all(isinstance(text, TextChunk) for text in texts)
    assert "".join(text.text for text in texts) == told.text
    assert last.usage.source is told.source
    if told.code is None:
        assert isinstance(last, DoneChunk)
        assert last.finish_reason is told.finish_reason
    else:
        assert isinstance(last, ErrorChunk)
        assert (last.error.code, last.error.retryable) == (told.code, told.retryable)


def check_response(response: httpx.Response, told: Told) -> None:
    """Check that an HTTP error or a whole answer is as it must be."""
    if told.code is None:
        assert response.status_code == 200
        answer = msgspec.json.decode(response.content, type=ChatResponse)
        assert (answer.text, answer.finish_reason, answer.usage.source) == (
            told.text,
            told.finish_reason,
            told.source,
        )
        return
    assert response.status_code == STATUS[told.code]
    error = problem(response)
    assert (error.code, error.retryable, error.retry_after_s) == (told.code, told.retryable, told.retry_after_s)
    assert response.headers.get("retry-after") == (None if told.retry_after_s is None else str(told.retry_after_s))
    assert (None if error.partial is UNSET else error.partial) == (told.text or None)
