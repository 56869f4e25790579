"""The agents of the tests, which stand for an operator's own agents."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import Any

from agents import (
    Agent,
    AgentToolStreamEvent,
    GuardrailFunctionOutput,
    OpenAIChatCompletionsModel,
    RunContextWrapper,
    Runner,
    WebSearchTool,
    function_tool,
    input_guardrail,
    output_guardrail,
)
from openai import AsyncOpenAI

from tests.support.canaries import CANARY


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It rains in {city}."


@function_tool
async def hanging_tool() -> str:
    """Never come to an end."""
    await asyncio.get_running_loop().create_future()
    return ""


@function_tool
def blocking_tool() -> str:
    """Hold a thread for long."""
    time.sleep(120)
    return ""


@function_tool
async def stubborn_tool() -> str:
    """Hold on for a minute, although it is cancelled."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 60
    while loop.time() < end:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(end - loop.time())
    return ""


@function_tool(failure_error_function=None)
async def cancelled_tool() -> str:
    """Fail by an error that looks like a cancellation."""
    raise asyncio.CancelledError(CANARY)


@function_tool(failure_error_function=None)
def broken_tool() -> str:
    """Fail with words that must stay inside."""
    raise RuntimeError(CANARY)


@input_guardrail(run_in_parallel=False)
async def no_secrets(_: RunContextWrapper[None], __: Agent[Any], message: Any) -> GuardrailFunctionOutput:
    """Trip if the message contains a forbidden word."""
    return GuardrailFunctionOutput(CANARY, "forbidden" in str(message))


@input_guardrail
async def asking(_: RunContextWrapper[None], __: Agent[Any], message: Any) -> GuardrailFunctionOutput:
    """Ask a model whether the message is allowed."""
    result = await Runner.run(Agent("Judge", instructions="Say yes or no."), message)
    return GuardrailFunctionOutput(None, result.final_output == "no")


@input_guardrail
async def hanging_guardrail(_: RunContextWrapper[None], __: Agent[Any], ___: Any) -> GuardrailFunctionOutput:
    """Never return a verdict."""
    await asyncio.get_running_loop().create_future()
    return GuardrailFunctionOutput(None, False)  # noqa: FBT003


@output_guardrail
async def short_answers(_: RunContextWrapper[None], __: Agent[Any], answer: str) -> GuardrailFunctionOutput:
    """Trip if the answer is long."""
    return GuardrailFunctionOutput(CANARY, len(answer) > 20)


@output_guardrail
async def late_verdict(_: RunContextWrapper[None], __: Agent[Any], answer: str) -> GuardrailFunctionOutput:
    """Fail if the answer says so; otherwise return no verdict."""
    if "crash" in answer:
        raise RuntimeError(CANARY)
    await asyncio.get_running_loop().create_future()
    return GuardrailFunctionOutput(None, True)  # noqa: FBT003


@function_tool
def telling_tool(about: str) -> str:
    """Return what nobody but the model may see."""
    return about + os.environ["PRIVATE"]


@function_tool
def failing_tool(about: str) -> str:
    """Fail with words that only the model may see."""
    raise RuntimeError(about + os.environ["PRIVATE"])


@input_guardrail
async def private_guardrail(_: RunContextWrapper[None], __: Agent[Any], message: Any) -> GuardrailFunctionOutput:
    """Trip if the message has the name of a script; the guardrail's output must stay secret."""
    return GuardrailFunctionOutput(os.environ["PRIVATE"], "trips_the_guardrail" in str(message))


helper = Agent[None]("Helper", instructions="You help.", handoff_description="Helps.", model="other-1")
forecaster = Agent[None]("Forecaster", tools=[weather])
plain = Agent[None]("Plain", instructions="You are terse.")
tooled = Agent[None](
    "Tooled",
    instructions="You tell the weather.",
    tools=[weather, hanging_tool, blocking_tool, broken_tool, helper.as_tool("ask_helper", "Ask the helper.")],
    handoffs=[helper],
    input_guardrails=[no_secrets],
    output_guardrails=[short_answers],
)


async def watch(_: AgentToolStreamEvent) -> None:
    """Receive the helper's events."""


@function_tool
async def run_helper(question: str) -> str:
    """Ask the helper as the documentation of openai-agents does."""
    return str((await Runner.run(helper, question)).final_output)


@function_tool
def block_for_helper(question: str) -> str:
    """Ask the helper from a thread."""
    return str(Runner.run_sync(helper, question).final_output)


left_behind: set[asyncio.Task[Any]] = set()


@function_tool
async def leave_helper(question: str) -> str:
    """Ask the helper, and do not wait for the answer."""
    left_behind.add(asyncio.create_task(Runner.run(helper, question)))
    return "later"


@function_tool
async def stream_helper(question: str) -> str:
    """Ask the helper, and read what it says as it comes."""
    result = Runner.run_streamed(helper, question, run_config={"workflow_name": CANARY})
    async for _ in result.stream_events():
        pass
    return str(result.final_output)


attacked = Agent[None](
    "Attacked",
    tools=[
        weather,
        hanging_tool,
        stubborn_tool,
        cancelled_tool,
        blocking_tool,
        run_helper,
        stream_helper,
        block_for_helper,
        leave_helper,
        helper.as_tool("ask_helper", "Ask the helper."),
        helper.as_tool("watch_helper", "Ask the helper, and watch.", on_stream=watch),
        helper.as_tool("need_helper", "Ask the helper, who must answer.", failure_error_function=None),
    ],
)
guarded = Agent[None]("Guarded", tools=[weather, hanging_tool], input_guardrails=[hanging_guardrail])
ping = Agent[None]("Ping")
pong = Agent[None]("Pong", handoffs=[ping])
ping.handoffs = [pong]
judged = Agent[None]("Judged", instructions="You answer.", input_guardrails=[asking])
private = Agent[None]("Private", tools=[telling_tool, failing_tool], input_guardrails=[private_guardrail])
vetted = Agent[None]("Vetted", output_guardrails=[late_verdict])
leading_to_vetted = Agent[None]("Leading", handoffs=[vetted])
last_word = Agent[None]("Last word", tools=[weather], tool_use_behavior="stop_on_first_tool")

with_a_model = Agent("Bad", model=OpenAIChatCompletionsModel("m-1", AsyncOpenAI(api_key="none")))
with_web_search = Agent("Bad", tools=[WebSearchTool()])
with_a_bad_handoff = Agent("Outer", handoffs=[with_web_search])
no_agent = 5


def make() -> Agent[None]:
    """Return an agent."""
    return plain


def make_in_vain() -> Agent[None]:
    """Fail to make an agent."""
    raise RuntimeError(CANARY)
