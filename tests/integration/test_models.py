"""Parley's models in any openai-agents `Runner`: they report text, usage and errors truthfully."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from agents import Agent, RunConfig, Runner
from openai.types.responses import ResponseCompletedEvent, ResponseTextDeltaEvent

from parley.agent.model import UpstreamModels
from parley.chat.errors import ChatError, ErrorCode
from parley.chat.watch import Untraced
from parley.providers.calls import Upstreams
from parley.providers.upstream import Upstream
from parley.telemetry.metrics import metrics
from parley.testing.upstream import ScriptedUpstream, answer, in_turn, respond

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from parley.settings import Settings
    from parley.testing.exchange import Script

TERSE = Agent("Terse", instructions="You are terse.", model="m-2")


@asynccontextmanager
async def config(settings: Settings) -> AsyncIterator[RunConfig]:
    """Provide a run configuration with which a runner uses Parley's models."""
    upstream = Upstream(
        base_url=settings.openai_base_url or "",
        api_key=None,
        model_name="m-1",
        instructions=None,
        temperature=None,
        connect_timeout_s=5,
        watch=metrics(),
        tracer=Untraced(),
    )
    async with upstream:
        yield RunConfig(model_provider=UpstreamModels(Upstreams([upstream]), settings), tracing_disabled=True)


async def test_a_runner_gets_the_answer_and_what_it_cost(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """The upstream is asked for the model that the agent names."""
    async with config(make_settings()) as run_config:
        result = await Runner.run(TERSE, "Hi", run_config=run_config)
    assert result.final_output == "Hello"
    usage = result.context_wrapper.usage
    assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.total_tokens) == (1, 7, 3, 10)
    assert upstream.exchanges[0].json["model"] == "m-2"


@pytest.mark.parametrize(
    ("reason", "status"), [("stop", "completed"), ("length", "incomplete"), ("content_filter", "incomplete")]
)
async def test_a_runner_that_streams_gets_the_text_and_the_truth_about_its_end(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, reason: str, status: str
) -> None:
    """The last event says whether the answer is complete."""
    upstream.script = answer("Hel", "lo", finish_reason=reason)
    async with config(make_settings()) as run_config:
        result = Runner.run_streamed(TERSE, "Hi", run_config=run_config)
        data = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
    *texts, last = data
    assert "".join(event.delta for event in texts if isinstance(event, ResponseTextDeltaEvent)) == "Hello"
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.status == status
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 3


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (answer("Hel", finish_reason=None), ErrorCode.UPSTREAM_TRUNCATED),
        (respond(401, {}), ErrorCode.UPSTREAM_AUTH),
    ],
)
async def test_a_runner_gets_an_error_for_an_answer_that_is_not_whole(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, script: Script, code: ErrorCode
) -> None:
    """A truncated answer and a refusal both raise `ChatError`."""
    upstream.script = script
    async with config(make_settings()) as run_config:
        with pytest.raises(ChatError) as caught:
            await Runner.run(TERSE, "Hi", run_config=run_config)
    assert caught.value.code is code


async def test_a_runners_model_calls_are_retried(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """The model calls of Parley's own agent are retried in the same way."""
    upstream.script = in_turn(respond(500, {}), answer("Hello"))
    async with config(make_settings(retries=1)) as run_config:
        assert (await Runner.run(TERSE, "Hi", run_config=run_config)).final_output == "Hello"
    assert len(upstream.exchanges) == 2


async def test_unknown_usage_is_none(make_settings: Callable[..., Settings], upstream: ScriptedUpstream) -> None:
    """Unknown usage is not reported as 0."""
    upstream.script = answer("Hello", usage=None)
    async with config(make_settings()) as run_config:
        result = Runner.run_streamed(TERSE, "Hi", run_config=run_config)
        data = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
    assert isinstance(data[-1], ResponseCompletedEvent)
    assert data[-1].response.usage is None
