"""An operator's own agent: its tools, guardrails and handoffs, with the guarantees of every stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason, UsageSource
from parley.testing.upstream import ScriptedUpstream, answer, in_turn
from parley.wire.schema import DoneChunk, ErrorChunk, StartChunk, TextChunk
from tests.support.running import problem, running, stream
from tests.support.scripts import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from parley.wire.schema import StreamChunk
    from tests.support.logs import Logs

REQUEST = {"message": "What is the weather in Paris?"}


def agent(name: str) -> str:
    """Return the path of one of the tests' agents."""
    return f"tests.support.agents:{name}"


def ending(chunks: list[StreamChunk]) -> tuple[str, StreamChunk]:
    """Return the text of a stream and its last chunk."""
    assert isinstance(chunks[0], StartChunk)
    assert all(isinstance(chunk, TextChunk) for chunk in chunks[1:-1])
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), chunks[-1]


async def test_an_agent_answers_with_the_result_of_its_tool(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Text before and after the tool call forms one answer; the usage is the sum of both model calls."""
    upstream.script = in_turn(call("weather", '{"ci', 'ty": "Paris"}', text="Let me see. "), answer("It ", "rains."))
    async with running(make_settings(agent=agent("tooled")), logs) as client:
        text, done = ending(await stream(client, REQUEST))
        line = await logs.line()
    assert text == "Let me see. It rains."
    assert isinstance(done, DoneChunk)
    assert done.finish_reason is FinishReason.STOP
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.source) == (107, 13, UsageSource.UPSTREAM)
    first, second = (exchange.json for exchange in upstream.exchanges)
    assert first["messages"][0] == {"role": "system", "content": "You tell the weather."}
    assert {tool["function"]["name"] for tool in first["tools"]} >= {"weather", "ask_helper", "transfer_to_helper"}
    assert second["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "call_weather",
        "content": "It rains in Paris.",
    }
    assert (line["attempts"], line["input_tokens"], line["finish_reason"]) == (2, 107, "stop")


async def test_an_agent_hands_over_to_another_which_names_its_own_model(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """Parley asks the upstream for that model, with the other agent's instructions."""
    upstream.script = in_turn(call("transfer_to_helper"), answer("At your service."))
    async with running(make_settings(agent=agent("tooled"))) as client:
        chunks = await stream(client, REQUEST)
    assert ending(chunks)[0] == "At your service."
    assert isinstance(chunks[0], StartChunk)
    assert chunks[0].model == "other-1"
    asked = upstream.exchanges[1].json
    assert (asked["model"], asked["messages"][0]["content"]) == ("other-1", "You help.")


@pytest.mark.parametrize(
    ("name", "message", "script", "code", "calls"),
    [
        ("tooled", "forbidden", answer("Hello"), ErrorCode.GUARDRAIL_TRIPPED, 0),
        ("judged", "Hi", answer("no"), ErrorCode.GUARDRAIL_TRIPPED, 2),
        ("tooled", "Hi", call("weather", '{"city": "Paris"}'), ErrorCode.TOO_MANY_TURNS, 10),
        ("tooled", "Hi", call("no_such_tool"), ErrorCode.UPSTREAM_ERROR, 1),
        ("tooled", "Hi", call("broken_tool"), ErrorCode.INTERNAL, 1),
        (
            "tooled",
            "Hi",
            in_turn(call("weather", '{"city": "Paris"}'), call("hanging_tool")),
            ErrorCode.REQUEST_TIMEOUT,
            2,
        ),
    ],
)
async def test_an_agent_that_fails_says_by_what(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    logs: Logs,
    name: str,
    message: str,
    script: Script,
    code: ErrorCode,
    calls: int,
) -> None:
    """No text of the guardrails, tools or exceptions gets out."""
    upstream.script = script
    async with running(make_settings(agent=agent(name)), logs) as client:
        error = problem(await client.post("/chat/complete", json={"message": message}))
    assert error.code is code
    assert len(upstream.exchanges) == calls


async def test_the_answer_that_a_guardrail_does_not_allow_ends_with_an_error(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """The client has read the answer by then; the error tells it not to use the answer."""
    upstream.script = answer("All too long ", "an answer, this one")
    async with running(make_settings(agent=agent("tooled"))) as client:
        _, error = ending(await stream(client, REQUEST))
        refused = await client.post("/chat/complete", json=REQUEST)
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.GUARDRAIL_TRIPPED
    assert problem(refused).code is ErrorCode.GUARDRAIL_TRIPPED
    assert "too long" not in refused.text
    assert "partial" not in refused.json()


@pytest.mark.parametrize(
    ("name", "text", "code", "shows_it"),
    [
        ("vetted", "An answer", ErrorCode.REQUEST_TIMEOUT, False),
        ("vetted", "Do crash", ErrorCode.INTERNAL, False),
        ("leading_to_vetted", "An answer", ErrorCode.UPSTREAM_TRUNCATED, False),
        ("forecaster", "An answer", ErrorCode.UPSTREAM_TRUNCATED, True),
    ],
)
async def test_an_answer_that_no_guardrail_has_allowed_is_not_shown_in_part(
    make_settings: Callable[..., Settings],
    upstream: ScriptedUpstream,
    name: str,
    text: str,
    code: ErrorCode,
    *,
    shows_it: bool,
) -> None:
    """It does not matter whether the guardrail is late, fails, or has not been asked yet."""
    upstream.script = answer(text, finish_reason=None if code is ErrorCode.UPSTREAM_TRUNCATED else "stop")
    async with running(make_settings(agent=agent(name))) as client:
        response = await client.post("/chat/complete", json=REQUEST)
    error = problem(response)
    assert error.code is code
    assert error.partial == (text if shows_it else UNSET)
    assert (text in response.text) is shows_it


async def test_a_failure_after_text_does_not_overtake_the_text(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """No text is lost, either."""
    words = [f"{number} " for number in range(500)]

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(
            b"".join(f'data: {{"choices":[{{"delta":{{"content":"{w}"}}}}]}}\n\n'.encode() for w in words)
        )
        exchange.close()

    upstream.script = in_turn(call("weather", '{"city": "Paris"}'), script)
    async with running(make_settings(agent=agent("tooled"))) as client:
        text, error = ending(await stream(client, REQUEST))
    assert text == "".join(words)
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.UPSTREAM_TRUNCATED


async def test_a_tool_can_have_the_last_word(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """This agent stops at its tool's result."""
    upstream.script = call("weather", '{"city": "Paris"}')
    async with running(make_settings(agent=agent("last_word"))) as client:
        text, done = ending(await stream(client, REQUEST))
    assert text == "It rains in Paris."
    assert isinstance(done, DoneChunk)


async def test_what_a_tool_asks_a_model_is_no_part_of_the_answer(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """The tool's model call still counts towards the usage."""
    upstream.script = in_turn(call("ask_helper", '{"input": "Well?"}'), answer("secret"), answer("Done."))
    async with running(make_settings(agent=agent("tooled"))) as client:
        text, done = ending(await stream(client, REQUEST))
    assert text == "Done."
    assert isinstance(done, DoneChunk)
    assert done.usage.output_tokens == 10 + 3 + 3


async def test_an_agent_may_answer_with_what_its_calls_have_left_of_the_tokens(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """All model calls of a request share its `max_output_tokens`."""
    upstream.script = in_turn(call("weather", '{"city": "Paris"}'), answer("Rain.", finish_reason="length"))
    async with running(make_settings(agent=agent("tooled"))) as client:
        _, done = ending(await stream(client, {**REQUEST, "max_output_tokens": 12}))
    assert [exchange.json["max_tokens"] for exchange in upstream.exchanges] == [12, 2]
    assert isinstance(done, DoneChunk)
    assert done.finish_reason is FinishReason.LENGTH
