"""Floods from upstreams: what one of them may cost other clients, in CPU time, waiting time and memory."""

from __future__ import annotations

import socket
import urllib.parse
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from parley.wire.schema import ErrorChunk
from tests.support.canaries import CANARY_KEY
from tests.support.cost import measuring
from tests.support.floods import CALL, FLOODS, OF_TOOLS, PLAIN, flooding
from tests.support.process import parley
from tests.support.running import FORECASTER, read_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.cost import Cost
    from tests.support.process import Parley

pytestmark = pytest.mark.long

MOST_CPU_S = 3  # a busy machine increases CPU time, too
MOST_STALL_S = 0.1
MOST_GROWTH_KB = 50_000
DEADLINE_S = 10
SETTINGS = {
    "OPENAI_API_KEY": CANARY_KEY,
    "PARLEY_MODEL": "flooded-1",
    "PARLEY_RETRIES": "0",
    "PARLEY_REQUEST_TIMEOUT_S": str(DEADLINE_S),
    "PARLEY_DRAIN_TIMEOUT_S": "1",
}
OF_MODELS = [name for name in FLOODS if "models" in name]
AT_ONCE = ("gzip of empty lines", "empty objects", "text", "an error")


@dataclass(frozen=True)
class Case:
    """A flood, the path that asks for it, and the number of simultaneous requests."""

    name: str
    path: str = "/chat/complete"
    at_once: int = 1

    def __str__(self) -> str:
        return f"{self.name}, {self.at_once} to {self.path}"


CASES = [
    *(Case(name) for name in FLOODS if name not in {PLAIN, CALL, *OF_MODELS}),
    *(Case(name, "/chat") for name in ("text", "a MB of text at a time", "empty objects", "gzip of empty lines")),
    *(Case(name, at_once=5) for name in AT_ONCE),
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """Run the upstream that sends floods."""
    with flooding() as url:
        yield url


@asynccontextmanager
async def serving(base_url: str, **variables: str) -> AsyncIterator[Parley]:
    """Run a Parley that has answered once, as this loads much code; SIGTERM must stop it despite the floods."""
    async with parley(OPENAI_BASE_URL=base_url, **{**SETTINGS, **variables}) as served, served.client() as client:
        try:
            answer = await client.post("/chat/complete", json={"message": PLAIN})
            assert answer.json()["text"] == "whole"
            yield served
            served.process.terminate()
            with anyio.fail_after(20):
                assert await served.process.wait() == 0
        finally:
            with suppress(ProcessLookupError):
                served.process.kill()


@pytest.fixture(scope="module")
async def served(upstream: str) -> AsyncIterator[Parley]:
    """Run one Parley for many floods; none of them may have lasting effects."""
    async with serving(f"{upstream}/v1") as served:
        yield served


@pytest.fixture(scope="module")
async def agent(upstream: str) -> AsyncIterator[Parley]:
    """Run a Parley whose agent calls a tool before the flood."""
    async with serving(f"{upstream}/v1", PARLEY_AGENT=FORECASTER) as served:
        yield served


@pytest.mark.parametrize(
    "case", [Case(name, "/chat") for name in ("text", "a MB of text at a time", *OF_TOOLS)], ids=str
)
async def test_a_flood_of_an_agents_model_costs_nobody_else_their_turn(agent: Parley, case: Case) -> None:
    """The floods of tool calls are included."""
    await test_a_flood_costs_nobody_else_their_turn(agent, case)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_flood_costs_nobody_else_their_turn(served: Parley, case: Case) -> None:
    """A flood ends with an error or whole, for little CPU time and memory; health checks are answered meanwhile."""
    answers: list[httpx.Response] = []
    async with served.client() as client:

        async def ask() -> None:
            answers.append(await client.post(case.path, json={"message": case.name}))

        with measuring(served) as cost, anyio.fail_after(DEADLINE_S + 30):
            async with anyio.create_task_group() as group:
                for _ in range(case.at_once):
                    group.start_soon(ask)
    for answer in answers:
        check(answer, case)
    check_cost(cost, case.at_once)


@pytest.mark.parametrize("name", OF_MODELS)
async def test_a_list_of_models_without_end_costs_nobody_else_their_turn(upstream: str, name: str) -> None:
    """Readiness requires no key, so anyone can make Parley request the list."""
    async with serving(f"{upstream}/{urllib.parse.quote(name)}/v1") as served, served.client() as client:
        with measuring(served) as cost:
            ready = await client.get("/health/ready")
    assert ready.status_code in {200, 503}
    assert ready.json()["reason"] in {None, "upstream_error", "upstream_unreachable"}
    check_cost(cost, 1)


def check(answer: httpx.Response, case: Case) -> None:
    """Check that the answer is complete, or an error that names the upstream or the timeout."""
    text = FLOODS[case.name].text
    if answer.status_code == 200 and case.path == "/chat":
        *_, last = read_chunks(answer.content)
        assert isinstance(last, ErrorChunk)
        assert last.error.code.startswith(("upstream_", "request_timeout"))
    elif answer.status_code == 200:
        assert text is not None
        assert answer.json()["text"] == text
    else:
        assert answer.json()["code"].startswith(("upstream_", "request_timeout")), answer.text


def check_cost(cost: Cost, at_once: int) -> None:
    """Check the cost of the flood."""
    assert cost.cpu_s < MOST_CPU_S * at_once
    assert cost.stall_s < MOST_STALL_S
    assert cost.growth_kb < MOST_GROWTH_KB


STUCK = 30


@pytest.mark.parametrize("agent", ["", FORECASTER], ids=["plain", "agent"])
async def test_clients_that_do_not_read_a_flood_cost_little_memory(upstream: str, agent: str) -> None:
    """Parley does not read on from the upstream, until all clients are cut off."""
    body = b'{"message":"text"}'
    request = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    async with (
        # On a slow machine, some streams would otherwise end at their deadline, before their client is cut off.
        serving(
            f"{upstream}/v1", PARLEY_AGENT=agent, PARLEY_WRITE_TIMEOUT_S="3", PARLEY_REQUEST_TIMEOUT_S="300"
        ) as served,
        AsyncExitStack() as all_,
    ):
        url = httpx.URL(served.url)
        with measuring(served) as cost:
            for _ in range(STUCK):
                connection = all_.enter_context(socket.create_connection((url.host, url.port)))
                connection.sendall(request % (len(body), body))
            with anyio.fail_after(DEADLINE_S + 90):
                await served.logs.line("connection_timed_out", number=STUCK)
    assert cost.growth_kb < MOST_GROWTH_KB
