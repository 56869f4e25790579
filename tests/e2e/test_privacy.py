"""The privacy proof: a canary in every input, and no canary in any output.

Two outputs may have one: the answer's text, which is the product, and the request to the upstream.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from functools import partial
from http import HTTPStatus
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parley.chat.errors import ErrorCode
from parley.testing.upstream import respond
from tests.support.canaries import Canaries
from tests.support.collector import Collector
from tests.support.hostile import CALLERS, ODD, OPERATIONS, bytes_of_requests, chat, headers, requests, scripts
from tests.support.process import arguments, parley

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import httpx

    from parley.testing.exchange import Exchange
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.process import Parley

    Job = Callable[[], Awaitable[None]]

# Debug runs in both formats: its log contains everything that a quieter level logs.
RUNS = [("debug", "json"), ("debug", "console"), ("info", "json"), ("warning", "json"), ("error", "json")]
# Debug modes of asyncio and openai, and all of Python's warnings.
LOUD = {"PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1", "OPENAI_LOG": "debug"}
PLACES, QUEUE = 16, 8
AT_ONCE = 2

_COLOUR = re.compile(r"\x1b\[\d+m")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process's arguments are read from /proc")


class Proof:
    """Runs Parleys with canaries, searches all of their outputs, and counts the searches."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.canaries = Canaries()
        self.scripts = scripts(self.canaries)
        self.leaks: set[str] = set()
        self.looks: Counter[str] = Counter()
        self.codes: set[str] = set()
        self._upstream = upstream
        upstream.script = self._show
        upstream.headers = {
            name: f"{self.canaries[f'the upstream {name}']}!" for name in ("set-cookie", "x-request-id")
        }
        upstream.models_script = respond(200, self.canaries["the upstream's models"])

    def look(self, sink: str, text: str) -> None:
        """Search a text in which no canary may be."""
        self.looks[sink] += 1
        self.leaks |= {f"{place}, in {sink}" for place in self.canaries.found_in(text)}

    def look_at_arguments(self, served: Parley) -> None:
        """Search the command lines of Parley and its children."""
        for command in arguments(served.process.pid).values():
            self.look("a process's arguments", " ".join(command))

    def look_at_output(self, served: Parley, log_format: str) -> None:
        """Search the output of a Parley that has ended; each line must have the form that Parley gives it."""
        self.look("standard output", served.logs.getvalue())
        self.look("standard error", served.errors.getvalue())
        assert "unexpected_error" not in served.logs.getvalue()
        for line in served.logs.getvalue().split("\n")[:-1]:
            self.looks["a line of the log"] += 1
            check_line(line, log_format)

    def variables(self, **more: str) -> dict[str, str]:
        """Return settings with a canary in each secret and text; a proxy leads to the upstream."""
        proxy = self._upstream.url.removesuffix("/v1").replace("://", f"://user:{self.canaries['the proxy password']}@")
        return {
            "HTTP_PROXY": proxy,
            "NO_PROXY": "127.0.0.1",
            "OPENAI_BASE_URL": f"http://first.example/{self.canaries['the base URL']}/v1",
            "OPENAI_API_KEY": self.canaries["the key"],
            "PARLEY_MODEL": "first",
            "PARLEY_FALLBACK_BASE_URL": f"http://second.example/{self.canaries['the fallback URL']}/v1",
            "PARLEY_FALLBACK_API_KEY": self.canaries["the fallback key"],
            "PARLEY_FALLBACK_MODEL": "second",
            "PARLEY_SYSTEM_PROMPT": self.canaries["the system prompt"] + ODD,
            "PARLEY_API_KEYS": ",".join(self.canaries[caller] for caller in CALLERS),
            "PARLEY_METRICS_KEY": self.canaries["the key to the metrics"],
            "PARLEY_TRUSTED_PROXIES": "127.0.0.1",
            "PARLEY_CORS_ORIGINS": "https://app.example",
            "PARLEY_RETRIES": "1",
            "PARLEY_FIRST_TOKEN_TIMEOUT_S": "1",
            "PARLEY_IDLE_TIMEOUT_S": "1",
            "PARLEY_READ_TIMEOUT_S": "5",
            "PARLEY_DRAIN_TIMEOUT_S": "0.1",
            "PARLEY_MAX_STREAMS": str(PLACES),
            "PARLEY_MAX_STREAMS_PER_CALLER": str(PLACES),
            "PARLEY_MAX_QUEUE": str(QUEUE),
            **more,
        }

    async def run(self, level: str, log_format: str, collector: Collector) -> None:
        """Run one Parley through all requests and faults, until it has ended."""
        variables = self.variables(PARLEY_LOG_LEVEL=level, PARLEY_LOG_FORMAT=log_format)
        variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **(LOUD if level == "debug" else {})}
        async with parley(**variables) as served, served.client() as client:
            await _at_once(self._jobs(client))
            key = {"headers": {"Authorization": f"Bearer {self.canaries['the key to the metrics']}"}}
            await self.ask(client, "GET", "/metrics", key)
            self.look_at_arguments(served)
            await self._overload_and_stop(served, client)
        self.look_at_output(served, log_format)

    async def run_agent(self, collector: Collector) -> None:
        """Run a Parley with an operator's agent, at the most verbose level."""
        variables = self.variables(PARLEY_LOG_LEVEL="debug", PARLEY_LOG_FORMAT="json")
        variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **LOUD}
        variables |= {"PARLEY_AGENT": "tests.support.agents:private", "PRIVATE": self.canaries["the agent's own words"]}
        async with parley(**variables) as served, served.client() as client:
            await _at_once(partial(self.chat, client, path, name) for path in OPERATIONS for name in self.scripts)
        self.look_at_output(served, "json")

    def _jobs(self, client: httpx.AsyncClient) -> Iterator[Job]:
        for request in requests(self.canaries):
            yield partial(self.ask, client, *request)
        for data in bytes_of_requests(self.canaries):
            yield partial(self._write, client, data)
        for path in OPERATIONS:
            for name in self.scripts:
                yield partial(self.chat, client, path, name)
            yield partial(self.chat, client, path, "hang", timeout_s=0.2)
            yield partial(self._leave, client, path, "hang")
            yield partial(self._leave, client, path, "stall")

    async def ask(self, client: httpx.AsyncClient, method: str, path: str, options: dict[str, Any]) -> None:
        """Send a request, and search the response."""
        options = options | {"headers": headers(self.canaries) | options.get("headers", {})}
        query = {self.canaries["the query's name"]: self.canaries["the query's value"] + ODD}
        response = await client.request(method, path, **options, params=query)
        text = without_answer(path, response)
        self.look("a response's headers", str(response.headers.raw))
        self.look("the metrics" if path == "/metrics" else "a response's body", text)
        if not path.startswith("/schema"):
            self.codes |= set(re.findall(r'"code":"(\w+)"', text))

    async def chat(
        self, client: httpx.AsyncClient, path: str, fault: str, caller: str = CALLERS[0], **fields: object
    ) -> None:
        """Ask for an answer while the upstream shows a fault."""
        body = chat(self.canaries, fault, **fields)
        await self.ask(client, "POST", path, {"json": body, "headers": headers(self.canaries, caller)})

    async def _leave(self, client: httpx.AsyncClient, path: str, fault: str) -> None:
        """Ask, and leave before the end of the answer."""
        with anyio.move_on_after(0.2):
            await self.chat(client, path, fault)

    async def _write(self, client: httpx.AsyncClient, data: bytes) -> None:
        """Send bytes, and search everything that Parley sends until it closes the connection."""
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(data)
        answer = b""
        try:
            with anyio.fail_after(60):
                while more := await reader.read(65_536):
                    answer += more
        except ConnectionError:
            pass  # Parley closed before it had read everything
        finally:
            writer.close()
        self.look("the answer to what is hardly HTTP", answer.decode("latin-1"))

    async def _overload_and_stop(self, served: Parley, client: httpx.AsyncClient) -> None:
        """Send more than a caller may, and more than there is room for; then stop Parley while the rest still waits."""
        first, second = asyncio.Event(), asyncio.Event()

        async def ask(path: str, caller: str, is_over: asyncio.Event) -> None:
            await self.chat(client, path, "hang", caller)
            is_over.set()

        async with anyio.create_task_group() as group:
            for path in islice(cycle(OPERATIONS), PLACES + 1):
                group.start_soon(ask, path, CALLERS[0], first)
            await first.wait()
            for path in islice(cycle(OPERATIONS), QUEUE + 1):
                group.start_soon(ask, path, CALLERS[1], second)
            await second.wait()
            served.process.terminate()

    async def _show(self, exchange: Exchange) -> None:
        """Show the fault that the message names; nothing else that the caller sent may have been passed on."""
        sent = {name: value for name, value in exchange.headers.items() if not name.endswith("authorization")}
        self.look("what goes upstream beside the key and the body", str(sent))
        key = self.canaries["the fallback key" if "second.example" in exchange.path else "the key"]
        assert exchange.headers["authorization"] == f"Bearer {key}"
        assert exchange.json["messages"][0]["content"] == self.canaries["the system prompt"] + ODD
        message = next(turn for turn in reversed(exchange.json["messages"]) if turn["role"] == "user")
        await self.scripts[message["content"].split()[-1]](exchange)


async def _at_once(jobs: Iterator[Job]) -> None:
    """Run the jobs, at most one per place at a time."""
    places = anyio.Semaphore(PLACES)

    async def do(job: Job) -> None:
        async with places:
            await job()

    async with anyio.create_task_group() as group:
        for job in jobs:
            group.start_soon(do, job)


def without_answer(path: str, response: httpx.Response) -> str:
    """Return a body without the text of the model."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return "\n".join(line for line in response.text.split("\n") if not line.startswith('data: {"type":"text"'))
    if path == "/chat/complete" and response.status_code == 200:
        return json.dumps({**response.json(), "text": ""})
    if path == "/chat/complete" and response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return json.dumps({**response.json(), "partial": ""}, separators=(",", ":"))
    return response.text


def check_line(line: str, log_format: str) -> None:
    """Check that a log line has the form that Parley gives it, and contains nothing that a terminal obeys."""
    if log_format == "json":
        assert list(json.loads(line))[:3] == ["timestamp", "level", "event"]
    else:
        assert re.match(r"\d\d:\d\d:\d\d  ?(\[\w+ *\]|\d{3}|---) ", line), line
    assert _COLOUR.sub("", line).isprintable()


@pytest.mark.timeout(900)
@pytest.mark.long
async def test_nothing_that_comes_in_goes_out_but_in_the_answer(
    upstream: ScriptedUpstream, record_property: Callable[[str, object], None]
) -> None:
    """The test covers every endpoint, fault, operation, log level and format; every error code occurs."""
    proof = Proof(upstream)
    at_once = anyio.Semaphore(AT_ONCE)

    async def run(level: str, log_format: str) -> None:
        async with at_once:
            await proof.run(level, log_format, collector)

    async with Collector() as collector, anyio.create_task_group() as group:
        for level, log_format in RUNS:
            group.start_soon(run, level, log_format)
        group.start_soon(proof.run_agent, collector)
    for exchange in collector.exchanges:
        proof.look("what goes to the collector of traces", f"{exchange.headers} {exchange.body.decode('latin-1')}")
    assert {span.attributes.get("parley.outcome") for span in collector.spans("server")} >= {"completed", "failed"}
    assert proof.leaks == set()
    assert proof.codes == set(ErrorCode) - {ErrorCode.INTERNAL}
    record_property("privacy", f"{len(proof.canaries.places)} canaries in as many places")
    record_property(
        "privacy", f"{len(proof.scripts)} faults x {len(OPERATIONS)} operations x {len(RUNS)} levels and formats"
    )
    for sink, number in proof.looks.items():
        record_property("privacy", f"none in {number} of: {sink}")


@pytest.mark.long
async def test_nothing_is_in_the_arguments_of_the_processes_that_parley_starts(upstream: ScriptedUpstream) -> None:
    """The embedded model gets its secret key through standard input; workers get theirs through a pipe."""
    proof = Proof(upstream)
    variables = proof.variables(OPENAI_BASE_URL="", OPENAI_API_KEY="", PARLEY_WORKERS="2")
    async with parley(**variables) as served, served.client() as client:
        await served.logs.line("Application startup complete.", number=2)
        for path in OPERATIONS:
            await proof.chat(client, path, "none", max_output_tokens=5)
        proof.look_at_arguments(served)
        _, *children = arguments(served.process.pid).values()
    proof.look_at_output(served, "json")
    assert proof.leaks == set()
    assert [sys.executable, "-m", "parley.providers.llama_server"] in children
    assert sum("spawn_main" in " ".join(command) for command in children) == 2
