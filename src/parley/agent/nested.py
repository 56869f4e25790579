"""Owns the runs that a tool or a guardrail starts by itself: their models are Parley's, too."""

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
"""The models that a run asks, and the loop in which they can be asked."""


def confine() -> None:
    """Let openai-agents ask only the models of the run, and send its traces nowhere.

    By itself it would ask OpenAI with the key in OPENAI_API_KEY, past all limits, and send it what was asked.
    """
    set_default_agent_runner(_Runner())
    set_tracing_disabled(disabled=True)


class _Runner(AgentRunner):
    async def run(self, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002  # its name
        return await super().run(starting_agent, input, **_confined(options))

    def run_sync(self, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # as in the thread of a tool
            _, loop = models_of_run.get()
            return asyncio.run_coroutine_threadsafe(self.run(starting_agent, input, **options), loop).result()
        return super().run_sync(starting_agent, input, **options)  # which refuses to block the loop

    def run_streamed(self, starting_agent: Any, input: Any, **options: Any) -> RunResultStreaming:  # noqa: A002
        return super().run_streamed(starting_agent, input, **_confined(options))


def _confined(options: dict[str, Any]) -> Any:
    given = options.get("run_config")
    config = RunConfig(**given) if isinstance(given, dict) else given or RunConfig()
    if isinstance(config.model_provider, MultiProvider):
        models, _ = models_of_run.get()
        config = replace(config, model_provider=models)
    return {**options, "run_config": config}
