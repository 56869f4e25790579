"""Load the operator's own agent, and check that Parley can run it."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agents import Agent, FunctionTool, Handoff, InputGuardrail, OutputGuardrail
from agents.exceptions import AgentsException
from agents.models.chatcmpl_converter import Converter
from agents.sandbox import SandboxAgent

from parley.agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from traceback import FrameSummary

_PARLEY: Final = str(Path(__file__).parents[1])
_IMPORT_SYSTEM: Final = ("<frozen ", str(importlib.__file__))
_INSTALLED: Final = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))


def load(path: str) -> Agent[Any]:
    """Return the agent that `package.module:name` names, or that a callable of this name returns.

    Raises:
        AgentError: if there is no such agent, or Parley cannot run it.
    """
    module_name, _, name = path.partition(":")
    if module_name.startswith("."):
        raise AgentError(f"{module_name} is relative; write the module's full name, like package.module")
    is_made = False
    try:
        if (folder := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, folder)
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        if not isinstance(found, Agent) and callable(found):
            is_made, found = True, found()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, SystemExit) and frames[-1].filename.startswith(_PARLEY):
            raise  # a signal to stop arrived during the import
        raise AgentError(_reason(path, error, frames)) from error
    if inspect.iscoroutine(found):
        found.close()
        raise AgentError(f"{path} is async; make it a function that returns the agent without `await`")
    if not isinstance(found, Agent):
        is_none = "returned something that is not an agents.Agent" if is_made else "is not an agents.Agent"
        raise AgentError(f"{path} {is_none}; name an agent, or a function that returns one")
    for agent in _agents(found, set()):
        _check(agent)
    return found


def _reason(path: str, error: BaseException, frames: list[FrameSummary]) -> str:
    """Return what went wrong, and in which line; the exception's text is left out, as it may hold a secret."""
    module_name, _, name = path.partition(":")
    if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
        return f"there is no module {module_name}, neither in {Path.cwd()} nor on PYTHONPATH"
    theirs = [frame for frame in frames if not frame.filename.startswith((_PARLEY, *_IMPORT_SYSTEM))]
    if not theirs and isinstance(error, AttributeError):
        file = getattr(sys.modules.get(module_name), "__file__", None)
        return f"the module {module_name} ({file or 'a folder without __init__.py'}) has no {name}"
    if not theirs and isinstance(error, TypeError):
        return f"{path} cannot be called without arguments"
    what = f"{path} cannot be loaded: {type(error).__name__}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        what = f"{path} cannot be loaded: there is no module {error.name}, which is imported"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what} in {error.filename}, line {error.lineno}"
    # If the error was raised in a library, name the line of the operator's code that called it.
    own = [frame for frame in theirs if not frame.filename.startswith(_INSTALLED)]
    place = own[-1] if own else next(iter(theirs), None)
    return f"{what} in {place.filename}, line {place.lineno}" if place else what


def _agents(agent: Agent[Any], seen: set[int]) -> Iterator[Agent[Any]]:
    """Yield an agent, and each agent that it can hand off to or call as a tool, directly or indirectly."""
    if id(agent) in seen:
        return
    seen.add(id(agent))
    yield agent
    callees = [getattr(tool, "_agent_instance", None) for tool in agent.tools]
    for other in (*map(_receiver, agent.handoffs), *callees):
        if isinstance(other, Agent):
            yield from _agents(other, seen)


def has_guardrails(agent: Agent[Any]) -> bool:
    """Return whether an agent, or one that it can hand off to or call, has guardrails, its tools' among them."""
    return any(
        one.input_guardrails
        or one.output_guardrails
        or any(
            getattr(tool, "tool_input_guardrails", None) or getattr(tool, "tool_output_guardrails", None)
            for tool in one.tools
        )
        for one in _agents(agent, set())
    )


def _receiver(handoff: Any) -> Any:
    """Return the agent that a handoff leads to; if it does not name one, the handoff itself."""
    return handoff._agent_ref() if isinstance(handoff, Handoff) and handoff._agent_ref else handoff  # noqa: SLF001


def _check(agent: Agent[Any]) -> None:
    """Raise `AgentError` if an agent would bypass Parley, or fail at each request."""
    has = f"the agent {agent.name!r} has"
    if not (agent.model is None or isinstance(agent.model, str)):
        raise AgentError(
            f"{has} a model object of its own; name a model of the upstream instead, "
            "so that Parley's deadlines, retries and limits apply to it"
        )
    if isinstance(agent, SandboxAgent):
        raise AgentError(f"the agent {agent.name!r} needs a sandbox, and there is none here; use agents.Agent")
    if agent.mcp_servers:
        raise AgentError(f"{has} MCP servers, whose tools Parley cannot check; use function tools")
    if agent.prompt is not None:
        raise AgentError(f"{has} a prompt that is stored at OpenAI, for its Responses API; use instructions")
    if not all(isinstance(_receiver(handoff), Agent) for handoff in agent.handoffs):
        raise AgentError(f"{has} a handoff whose agent Parley cannot check; use an agent, or agents.handoff(agent)")
    for guardrail in (*agent.input_guardrails, *agent.output_guardrails):
        if not isinstance(guardrail, InputGuardrail | OutputGuardrail):
            raise AgentError(
                f"{has} the guardrail {_name(guardrail)}, which is not one yet; decorate it with @input_guardrail or "
                "@output_guardrail"
            )
    for tool in agent.tools:
        _check_tool(tool, f"{has} the tool {_name(tool)}")


def _check_tool(tool: Any, has: str) -> None:
    if not isinstance(tool, FunctionTool):
        raise AgentError(
            f"{has}, which is not a function tool; decorate a function with @function_tool, "
            "as the tools of OpenAI's Responses API do not work here"
        )
    if tool.needs_approval is not False:
        raise AgentError(f"{has}, which needs an approval; nobody can give it here, so drop it")
    try:
        Converter.tool_to_openai(tool)
    except AgentsException as error:
        raise AgentError(f"{has}, with options that only OpenAI's Responses API knows") from error


def _name(thing: Any) -> str:
    """Return the quoted name of an object that should be a tool or a guardrail."""
    return repr(getattr(thing, "name", None) or getattr(thing, "__name__", "?"))
