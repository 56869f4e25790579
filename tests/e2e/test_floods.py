"""Floods: what one of them may cost everybody else, in CPU time, in waiting and in memory."""

from __future__ import annotations

import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio
import pytest

from parley.web.schema import ErrorChunk
from tests.support.canaries import CANARY_KEY
from tests.support.cost import measuring
from tests.support.floods import FLOODS, PLAIN, flooding
from tests.support.process import parley
from tests.support.running import read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

pytestmark = pytest.mark.long

MOST_CPU_S = 1.5
MOST_STALL_S = 0.1
MOST_GROWTH_KB = 50_000
DEADLINE_S = 10


@dataclass(frozen=True)
class Case:
    """A flood, from which side it comes, and how often at once."""

    name: str
    path: str = "/chat/complete"
    at_once: int = 1
    side: Literal["upstream", "client"] = "upstream"

    def __str__(self) -> str:
        return f"{self.name}, {self.at_once} to {self.path}"


AT_ONCE = ("gzip of empty lines", "empty objects", "text", "chunks of a byte", "a line", "an error")
CASES = [
    *(Case(name) for name in FLOODS if "models" not in name and name != PLAIN),
    *(Case(name, "/chat") for name in ("text", "a MB of text at a time", "empty objects", "gzip of empty lines")),
    *(Case(name, at_once=5) for name in AT_ONCE),
    *(Case(name, "/health/ready") for name in FLOODS if "models" in name),
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """Run the flooding upstream."""
    with flooding() as url:
        yield url


@pytest.mark.timeout(200)
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_flood_costs_nobody_else_their_turn(upstream: str, case: Case) -> None:
    """It ends by its name, for little CPU time and memory, while health is answered; then SIGTERM ends the process."""
    variables = {
        "OPENAI_BASE_URL": f"{upstream}/{urllib.parse.quote(case.name)}/v1",
        "OPENAI_API_KEY": CANARY_KEY,
        "PARLEY_MODEL": "flooded-1",
        "PARLEY_RETRIES": "0",
        "PARLEY_REQUEST_TIMEOUT_S": str(DEADLINE_S),
        "PARLEY_DRAIN_TIMEOUT_S": "1",
    }
    async with parley(**variables) as served, served.client() as client:
        try:
            with anyio.fail_after(DEADLINE_S + 30):
                assert (await client.post("/chat/complete", json={"message": PLAIN})).json()["text"] == "whole"
                with measuring(served) as cost:
                    answers = await meet(client, case)
            served.process.terminate()
            with anyio.fail_after(20):
                assert await served.process.wait() == 0
        finally:
            with suppress(ProcessLookupError):
                served.process.kill()
    for answer in answers:
        check(answer, case)
    assert cost.cpu_s < MOST_CPU_S * case.at_once
    assert cost.stall_s < MOST_STALL_S
    assert cost.growth_kb < MOST_GROWTH_KB


async def meet(client: httpx.AsyncClient, case: Case) -> list[httpx.Response]:
    """Ask as often as the case wants, at once."""
    answers: list[httpx.Response] = []

    async def ask() -> None:
        if case.path.startswith("/health"):
            answers.append(await client.get(case.path))
        else:
            answers.append(await client.post(case.path, json={"message": "flood"}))

    async with anyio.create_task_group() as group:
        for _ in range(case.at_once):
            group.start_soon(ask)
    return answers


def check(answer: httpx.Response, case: Case) -> None:
    """Check that it is an error by its name, or whole."""
    text = FLOODS[case.name].text
    if case.path.startswith("/health"):
        assert answer.status_code in {200, 503}
        assert answer.json()["reason"] in {None, "upstream_error", "upstream_unreachable"}
    elif answer.status_code == 200 and case.path == "/chat":
        *_, last = read_chunks(answer.content)
        assert isinstance(last, ErrorChunk)
        assert last.error.code.startswith(("upstream_", "request_timeout"))
    elif answer.status_code == 200:
        assert text is not None
        assert answer.json()["text"] == text
    else:
        assert answer.json()["code"].startswith(("upstream_", "request_timeout")), answer.text
