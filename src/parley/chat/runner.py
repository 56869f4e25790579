"""Owns how openai-agents is asked to run a model for one reply."""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar

from agents import Agent, ModelRetrySettings, ModelSettings, MultiProvider, RunConfig, Runner

from parley.chat.retries import decide_retry

if TYPE_CHECKING:
    import asyncio

    from parley.chat.messages import Prompt
    from parley.chat.provider import Provider
    from parley.chat.run import Run

T = TypeVar("T")

# Made once: anew for each run, they would examine their own types for a millisecond.
_RETRY: Final = ModelRetrySettings(backoff={"initial_delay": 0.25, "max_delay": 2.0, "multiplier": 2.0, "jitter": True})
_MODEL_SETTINGS: Final = ModelSettings()
_RUN_CONFIG: Final = RunConfig(model_provider=MultiProvider(), tracing_disabled=True)


def start(prompt: Prompt, provider: Provider, run: Run, retries: int) -> asyncio.Task[None]:
    """Start the provider's model, which gives its text to the run; it is asked again at most so often.

    What is returned ends with the first text, and holds nothing then: the run's result would be kept in vain.

    Raises:
        ChatError: where the provider cannot serve now.
    """
    task = Runner.run_streamed(
        _agent(provider.instructions),
        [{"role": message.role, "content": message.content} for message in prompt.messages],
        max_turns=1,
        run_config=_changed(
            _RUN_CONFIG,
            model=provider.model(run),
            model_settings=_changed(
                _MODEL_SETTINGS,
                temperature=provider.temperature,
                max_tokens=prompt.max_output_tokens,
                retry=_changed(_RETRY, max_retries=retries, policy=lambda context: decide_retry(context.error, run)),
            ),
        ),
    ).run_loop_task
    assert task is not None  # noqa: S101  # it has been started
    return task


def _changed(settings: T, **changes: object) -> T:
    """Return a copy of openai-agents' settings with these changes."""
    made = copy(settings)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@cache
def _agent(instructions: str | None) -> Agent[None]:
    # Without a model's name, the settings of OpenAI's default model would be copied for each run.
    return Agent(name="parley", instructions=instructions, model="the run's", model_settings=_MODEL_SETTINGS)
