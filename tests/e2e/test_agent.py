"""The example's agent, and agents that fail to load, in a Parley that is started as an operator starts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from parley.chat.errors import ErrorCode
from parley.chat.events import UsageSource
from parley.testing.upstream import ScriptedUpstream, answer, in_turn
from parley.wire.schema import DoneChunk, TextChunk
from tests.support.canaries import CANARY
from tests.support.process import command, leading_to, parley
from tests.support.running import problem, stream
from tests.support.scripts import call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from parley.wire.schema import StreamChunk

pytestmark = pytest.mark.long

EXAMPLE = {"PYTHONPATH": str(Path(__file__).parents[2] / "examples" / "agent"), "PARLEY_AGENT": "shop:agent"}


@pytest.fixture(scope="module")
async def shop() -> AsyncIterator[tuple[ScriptedUpstream, httpx.AsyncClient]]:
    """Run the example once, with the scripted upstream."""
    async with (
        ScriptedUpstream() as upstream,
        parley(**leading_to(upstream, **EXAMPLE)) as served,
        served.client() as client,
    ):
        yield upstream, client


def text(chunks: list[StreamChunk]) -> str:
    """Return the text of a complete stream."""
    assert isinstance(chunks[-1], DoneChunk)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


async def test_the_example_answers_with_the_result_of_its_tool(
    shop: tuple[ScriptedUpstream, httpx.AsyncClient],
) -> None:
    """The response's usage is the sum of both model calls."""
    upstream, client = shop
    upstream.script = in_turn(call("order_status", '{"number": ', '"a-1001"}'), answer("It arrives ", "tomorrow."))
    chunks = await stream(client, {"message": "Where is my order A-1001?"})
    assert text(chunks) == "It arrives tomorrow."
    asked, told = (exchange.json for exchange in upstream.exchanges[-2:])
    assert {tool["function"]["name"] for tool in asked["tools"]} == {"order_status", "transfer_to_returns"}
    assert told["messages"][-1]["content"] == "Shipped on Monday. It arrives tomorrow."
    assert isinstance(chunks[-1], DoneChunk)
    assert (chunks[-1].usage.input_tokens, chunks[-1].usage.source) == (107, UsageSource.UPSTREAM)


async def test_the_example_hands_returns_over(shop: tuple[ScriptedUpstream, httpx.AsyncClient]) -> None:
    """The request goes to an agent with its own instructions."""
    upstream, client = shop
    upstream.script = in_turn(call("transfer_to_returns"), answer("Which order?"))
    assert text(await stream(client, {"message": "I want to send something back."})) == "Which order?"
    assert upstream.exchanges[-1].json["messages"][0]["content"].startswith("You help customers of a shop to return")


@pytest.mark.parametrize(
    "body",
    [
        {"message": "Charge 4242 4242 4242 4242."},
        {"message": "Charge it!", "history": [{"role": "user", "content": "It is 3782-822463-10005"}]},
    ],
)
async def test_no_model_of_the_examples_sees_a_card_number(
    shop: tuple[ScriptedUpstream, httpx.AsyncClient], body: dict[str, object]
) -> None:
    """The example's guardrail trips before the model is called."""
    upstream, client = shop
    before = len(upstream.exchanges)
    assert problem(await client.post("/chat", json=body)).code is ErrorCode.GUARDRAIL_TRIPPED
    assert len(upstream.exchanges) == before


async def test_the_example_answers_to_other_numbers(shop: tuple[ScriptedUpstream, httpx.AsyncClient]) -> None:
    """Parcel numbers, for example, do not end in a valid check digit."""
    upstream, client = shop
    upstream.script = answer("Hello.")
    assert text(await stream(client, {"message": "Parcel 4242 4242 4242 4243, phone 0123 456789"})) == "Hello."


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_agent_that_cannot_be_loaded_stops_the_start_with_one_line(tmp_path: Path, workers: str) -> None:
    """The line is the same for any number of workers, and contains nothing of the agent's own exception message."""
    (tmp_path / "agent.py").write_text(f"\nraise RuntimeError({CANARY!r})")
    variables = {"PYTHONPATH": str(tmp_path), "PARLEY_AGENT": "agent:agent", "PARLEY_WORKERS": workers}
    code, output, errors = await command(**variables, OPENAI_BASE_URL="http://127.0.0.1:9/v1", PARLEY_MODEL="x")
    assert (code, errors) == (3, "")
    (line,) = map(json.loads, output.splitlines())
    assert (line["event"], line["level"]) == ("start_failed", "critical")
    place = f"RuntimeError in {tmp_path}/agent.py, line 2."
    assert line["reason"] == f"PARLEY_AGENT: agent:agent cannot be loaded: {place}"


async def test_an_agent_that_only_workers_cannot_load_stops_the_start_too(tmp_path: Path) -> None:
    """All lines have the usual form."""
    code = f"import multiprocessing\nif multiprocessing.parent_process():\n    raise RuntimeError({CANARY!r})\n"
    (tmp_path / "agent.py").write_text(f"{code}from agents import Agent\nagent = Agent('A')\n")
    variables = {"PYTHONPATH": str(tmp_path), "PARLEY_AGENT": "agent:agent", "PARLEY_WORKERS": "2"}
    ended = await command(**variables, OPENAI_BASE_URL="http://127.0.0.1:9/v1", PARLEY_MODEL="x")
    assert (ended[0], ended[2]) == (3, "")
    assert "start_failed" in {json.loads(line)["event"] for line in ended[1].splitlines()}
    assert CANARY not in ended[1]


async def test_a_signal_to_stop_while_the_agent_is_loaded_is_no_failure(tmp_path: Path) -> None:
    """Python raises the signal's exception in the operator's code."""
    (tmp_path / "agent.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    variables = {"PYTHONPATH": str(tmp_path), "PARLEY_AGENT": "agent:agent"}
    ended = await command(**variables, OPENAI_BASE_URL="http://127.0.0.1:9/v1", PARLEY_MODEL="x")
    assert ended == (0, "", "")
