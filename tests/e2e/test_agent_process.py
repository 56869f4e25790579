"""`parley` as a process, with an agent: what tools can block, and which servers openai-agents can reach."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import anyio

from parley.chat.errors import ErrorCode
from parley.testing.upstream import ScriptedUpstream, answer, in_turn
from tests.support.canaries import CANARY
from tests.support.process import leading_to, parley
from tests.support.running import problem
from tests.support.scripts import call

if TYPE_CHECKING:
    from pathlib import Path

AGENT = "tests.support.agents:attacked"
REQUEST = {"message": "Hi"}
QUESTION = json.dumps({"input": CANARY, "question": CANARY})

# Records each server that the process tries to reach.
WATCH = """
import sys

def note(event, details):
    if event == "socket.connect" and isinstance(details[1], tuple):
        places.write(f"{details[1][0]}\\n")
    elif event == "socket.getaddrinfo":
        places.write(f"{details[0]}\\n")

places = open(%r, "a", buffering=1)
sys.addaudithook(note)
"""


async def test_tools_that_block_their_threads_hold_up_nothing(upstream: ScriptedUpstream) -> None:
    """Blocked tools delay neither their own responses, nor other tools, nor the exit."""
    blocked = 20
    upstream.script = call("blocking_tool")
    async with parley(**leading_to(upstream, PARLEY_AGENT=AGENT)) as served, served.client() as client:
        codes: list[ErrorCode] = []

        async def ask() -> None:
            codes.append(problem(await client.post("/chat", json={**REQUEST, "timeout_s": 3})).code)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(blocked):
                    group.start_soon(ask)
        assert codes == [ErrorCode.REQUEST_TIMEOUT] * blocked
        upstream.script = in_turn(call("weather", '{"city": "Paris"}'), answer("Rain."))
        assert (await client.post("/chat/complete", json=REQUEST)).json()["text"] == "Rain."
        served.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await served.process.wait() == 0


async def test_a_tool_that_blocks_is_not_waited_for_when_parley_is_stopped(upstream: ScriptedUpstream) -> None:
    """The client gets `shutting_down`."""
    upstream.script = call("blocking_tool")
    variables = leading_to(upstream, PARLEY_AGENT=AGENT, PARLEY_DRAIN_TIMEOUT_S="0.5")
    async with parley(**variables) as served, served.client() as client:
        codes: list[ErrorCode] = []

        async def ask() -> None:
            codes.append(problem(await client.post("/chat", json=REQUEST)).code)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await upstream.next_exchange()
            served.process.send_signal(signal.SIGTERM)
            with anyio.fail_after(20):
                assert await served.process.wait() == 0
    assert codes == [ErrorCode.SHUTTING_DOWN]


async def test_openai_agents_reaches_nobody_by_itself(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """By default, openai-agents would send the conversation to OpenAI as traces, and call OpenAI's models.

    It does not log the conversation either, even if it is told to.
    """
    places = tmp_path / "places"
    (tmp_path / "sitecustomize.py").write_text(WATCH % str(places))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    talkative = {"OPENAI_AGENTS_DONT_LOG_MODEL_DATA": "0", "OPENAI_AGENTS_DONT_LOG_TOOL_DATA": "0"}
    variables = leading_to(upstream, PARLEY_AGENT=AGENT, PYTHONPATH=path, **talkative)
    async with parley(**variables) as served, served.client() as client:
        for tool in ("run_helper", "stream_helper", "block_for_helper", "ask_helper", "watch_helper"):
            upstream.script = in_turn(call(tool, QUESTION), answer("No."), answer("Done."))
            assert (await client.post("/chat/complete", json={"message": CANARY})).json()["text"] == "Done."
        served.process.send_signal(signal.SIGTERM)
        assert await served.wait() == 0
    assert set(places.read_text().split()) == {"127.0.0.1"}
    assert {exchange.path for exchange in upstream.exchanges} == {"/v1/chat/completions"}
