"""Runs that a tool or a guardrail starts itself: they, too, use only Parley's models."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agents import ModelProvider, MultiProvider, RunConfig, set_tracing_disabled
from agents.run import AgentRunner, set_default_agent_runner

if TYPE_CHECKING:
    from agents import RunResult, RunResultStreaming

models_of_run: Final[ContextVar[tuple[ModelProvider, asyncio.AbstractEventLoop]]] = ContextVar("models_of_run")
"""The models for nested runs, and the event loop in which to call them."""


def confine() -> None:
    """Make openai-agents call only the models of the current run, and send no traces.

    By default, it would call OpenAI with the key in OPENAI_API_KEY, bypass all limits, and send the prompts to OpenAI
    as traces.
    """
    set_default_agent_runner(_Runner())
    set_tracing_disabled(disabled=True)


class _Runner(AgentRunner):
    async def run(self, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002  # the SDK's name
        return await super().run(starting_agent, input, **_confined(options))

    def run_sync(self, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # there is no loop in the thread of a tool
            _, loop = models_of_run.get()
            return asyncio.run_coroutine_threadsafe(self.run(starting_agent, input, **options), loop).result()
        return super().run_sync(starting_agent, input, **options)  # raises an error, as it would block the loop

    def run_streamed(self, starting_agent: Any, input: Any, **options: Any) -> RunResultStreaming:  # noqa: A002
        return super().run_streamed(starting_agent, input, **_confined(options))


def _confined(options: dict[str, Any]) -> Any:
    given = options.get("run_config")
    config = RunConfig(**given) if isinstance(given, dict) else given or RunConfig()
    if isinstance(config.model_provider, MultiProvider):
        models, _ = models_of_run.get()
        config = replace(config, model_provider=models)
    return {**options, "run_config": config}
