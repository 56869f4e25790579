"""Owns the loading of an operator's own agent, and what Parley can run of it."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import Agent, FunctionTool, Handoff
from agents.exceptions import AgentsException
from agents.models.chatcmpl_converter import Converter

if TYPE_CHECKING:
    from collections.abc import Iterator


class AgentError(Exception):
    """The operator's agent cannot be run; the message says why, and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"PARLEY_AGENT: {reason}.")


def load(path: str) -> Agent[Any]:
    """Return the agent that `package.module:name` names, or that the callable of this name makes.

    Raises:
        AgentError: if there is none, or Parley cannot run it.
    """
    module_name, _, name = path.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        if not isinstance(found, Agent) and callable(found):
            found = found()
    except Exception as error:
        raise AgentError(_reason(path, error)) from error
    if not isinstance(found, Agent):
        raise AgentError(f"{path} is not an agents.Agent, nor a callable that returns one")
    for agent in _agents(found, set()):
        _check(agent)
    return found


def _reason(path: str, error: Exception) -> str:
    """Tell what went wrong, and where, without the exception's text, which may hold a secret."""
    module_name, _, name = path.partition(":")
    if isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or module_name):
        return f"there is no module {module_name}; it is looked up in the working directory and on PYTHONPATH"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    if not theirs and isinstance(error, AttributeError):
        return f"the module {module_name} has no {name}"
    place = f" in {theirs[0].filename}, line {theirs[0].lineno}" if theirs else ""
    return f"{path} cannot be loaded: {type(error).__name__}{place}"


def _agents(agent: Agent[Any], seen: set[int]) -> Iterator[Agent[Any]]:
    """Yield an agent, and all others that can take over from it or be called by it."""
    if id(agent) in seen:
        return
    seen.add(id(agent))
    yield agent
    handoffs = [
        handoff._agent_ref() if isinstance(handoff, Handoff) and handoff._agent_ref else handoff  # noqa: SLF001
        for handoff in agent.handoffs
    ]
    callees = [getattr(tool, "_agent_instance", None) for tool in agent.tools]
    for other in (*handoffs, *callees):
        if isinstance(other, Agent):
            yield from _agents(other, seen)


def _check(agent: Agent[Any]) -> None:
    if not (agent.model is None or isinstance(agent.model, str)):
        raise AgentError(
            f"the agent {agent.name!r} has a model object of its own; name a model of the upstream instead, "
            "so that Parley's deadlines, retries and limits apply to it"
        )
    if agent.mcp_servers:
        raise AgentError(
            f"the agent {agent.name!r} has MCP servers, whose tools Parley cannot check; use function tools"
        )
    for tool in agent.tools:
        if not isinstance(tool, FunctionTool):
            raise AgentError(
                f"the agent {agent.name!r} has the tool {tool.name!r}, which only OpenAI's Responses API can run; "
                "use function tools"
            )
        try:
            Converter.tool_to_openai(tool)
        except AgentsException as error:
            raise AgentError(
                f"the tool {tool.name!r} of the agent {agent.name!r} uses what only OpenAI's Responses API has"
            ) from error
