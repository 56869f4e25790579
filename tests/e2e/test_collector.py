"""`parley` and a trace collector: what Parley imports, what a failing collector delays, and what each worker sends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from parley.testing.upstream import hang, respond
from tests.support.collector import Collector
from tests.support.faults import ECHO
from tests.support.process import leading_to, parley
from tests.support.running import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from parley.testing.exchange import Script
    from parley.testing.upstream import ScriptedUpstream

REQUEST = {"message": "Hi"}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """Run a trace collector."""
    async with Collector() as collector:
        yield collector


def test_without_a_collector_opentelemetrys_sdk_is_not_imported() -> None:
    """OpenTelemetry's API is imported, by openai-agents."""
    program = (
        "import sys; from parley.app import create_app; from parley.settings import Settings; create_app(Settings());"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)  # noqa: S603
    assert output.stdout == "[]\n"


@pytest.mark.parametrize("script", [hang, respond(503, ECHO)])
async def test_a_collector_that_fails_holds_up_neither_answers_nor_the_exit(
    upstream: ScriptedUpstream, collector: Collector, script: Script
) -> None:
    """No timeout of the exporter, however long, delays them, and the exporter prints nothing."""
    collector.script = script
    variables = {
        **leading_to(upstream),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.endpoint}/v1/traces",
        "OTEL_BSP_SCHEDULE_DELAY": "1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
    }
    async with parley(**variables) as served, served.client() as client:
        await stream(client, REQUEST)
        await collector.next_exchange()
        await stream(client, REQUEST)
        served.process.terminate()
        await served.wait()
    assert served.logs.lines("library_message") == []


async def test_every_worker_sends_its_own_spans(upstream: ScriptedUpstream, collector: Collector) -> None:
    """OpenTelemetry's own variables apply: here, how often spans are sent."""
    variables = {
        **leading_to(upstream),
        "PARLEY_WORKERS": "2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "1",
        "OTEL_SERVICE_NAME": "my-parley",
    }
    async with parley(**variables) as served:
        with anyio.fail_after(60):
            while len(served.logs.lines("Application startup complete.")) < 2:
                await served.logs.written()
            while len({span.resource["service.instance.id"] for span in collector.spans("server")}) < 2:
                async with served.client() as client:  # a new connection, which the other worker may accept
                    await asyncio.gather(*[stream(client, REQUEST) for _ in range(10)])
    assert {span.resource["service.name"] for span in collector.spans("server")} == {"my-parley"}
