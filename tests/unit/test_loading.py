"""Errors that stop the start if the operator's agent cannot be loaded or run, and their messages."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
from agents import Agent, FunctionTool

from parley.agent.errors import AgentError
from parley.agent.loading import load
from tests.support.canaries import CANARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMPORTS = """
import agents
from agents import (
    Agent,
    ApplyPatchTool,
    CodeInterpreterTool,
    ComputerTool,
    CustomTool,
    FileSearchTool,
    HostedMCPTool,
    ImageGenerationTool,
    LocalShellTool,
    OpenAIChatCompletionsModel,
    ProgrammaticToolCallingTool,
    ShellTool,
    ToolSearchTool,
    WebSearchTool,
    function_tool,
    handoff,
)
from agents.mcp import MCPServerStdio
from agents.sandbox import SandboxAgent
from openai import AsyncOpenAI


def plain_function() -> str:
    return ""


model = OpenAIChatCompletionsModel("m-1", AsyncOpenAI(api_key="none"))
search = WebSearchTool()
bad = Agent("Bad", model=model)
"""
HERE = "{folder}/operator_agent.py, line"
NEITHER = "name an agent, or a function that returns one"
MODEL = "'Bad' has a model object of its own; name a model of the upstream instead"
NO_FUNCTION = "which is not a function tool; decorate a function with @function_tool"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that writes the operator's module to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(code: str) -> None:
        (tmp_path / "operator_agent.py").write_text(code)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("operator_agent", None)


def refusal(name: str = "operator_agent:agent") -> str:
    """Return the error message for an agent that cannot be loaded; it is a single line."""
    with pytest.raises(AgentError) as raised:
        load(name)
    reason = str(raised.value)
    assert reason.startswith("PARLEY_AGENT: ")
    assert "\n" not in reason
    assert CANARY not in reason
    return reason


@pytest.mark.parametrize(
    ("code", "name", "reason"),
    [
        ("", "no_such_module:agent", "there is no module no_such_module, neither in {folder} nor on PYTHONPATH"),
        ("", "operator_agent.inner:agent", "there is no module operator_agent.inner, neither in"),
        ("", "operator_agen:agent", "there is no module operator_agen, neither in"),
        ("", ".operator_agent:agent", ".operator_agent is relative; write the module's full name"),
        ("", "operator_agent:agent", "the module operator_agent ({folder}/operator_agent.py) has no agent"),
        ("class A: b = 1", "operator_agent:A.c", "has no A.c"),
        ("import operator", "operator_agent:agent", "has no agent"),
        ("agent = 5", "operator_agent:agent", f"operator_agent:agent is not an agents.Agent; {NEITHER}"),
        (
            "def agent(): return 5",
            "operator_agent:agent",
            f"operator_agent:agent returned something that is not an agents.Agent; {NEITHER}",
        ),
        ("async def agent(): pass", "operator_agent:agent", "operator_agent:agent is async; make it a function"),
        ("def agent(x): pass", "operator_agent:agent", "operator_agent:agent cannot be called without arguments"),
        ("from agents import Agent as agent", "operator_agent:agent", "cannot be called without arguments"),
        (f"\nraise ValueError({CANARY!r})", "operator_agent:agent", f"cannot be loaded: ValueError in {HERE} 2."),
        (
            f"def agent():\n    raise ValueError({CANARY!r})",
            "operator_agent:agent",
            f"cannot be loaded: ValueError in {HERE} 2.",
        ),
        (f"def agent(:  # {CANARY}", "operator_agent:agent", f"cannot be loaded: SyntaxError in {HERE} 1."),
        (
            f"import json\njson.loads({CANARY!r})",
            "operator_agent:agent",
            f"cannot be loaded: JSONDecodeError in {HERE} 2.",
        ),
        ("from . import tools", "operator_agent:agent", f"cannot be loaded: ImportError in {HERE} 1."),
        (
            "import operator_agent_tools",
            "operator_agent:agent",
            f"there is no module operator_agent_tools, which is imported in {HERE} 1.",
        ),
        ("import operator_a", "operator_agent:agent", f"there is no module operator_a, which is imported in {HERE} 1."),
        ("raise ModuleNotFoundError", "operator_agent:agent", f"cannot be loaded: ModuleNotFoundError in {HERE} 1."),
        (f"import sys\nsys.exit({CANARY!r})", "operator_agent:agent", f"cannot be loaded: SystemExit in {HERE} 2."),
    ],
)
def test_an_agent_that_cannot_be_loaded_is_refused_with_the_place(
    write: Callable[[str], None], tmp_path: Path, code: str, name: str, reason: str
) -> None:
    """The message does not quote the exception, which may contain a secret."""
    write(code)
    assert reason.format(folder=tmp_path) in refusal(name)


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ("bad", MODEL),
        ("Agent('Outer', handoffs=[Agent('Inner', handoffs=[bad])])", MODEL),
        ("Agent('Outer', handoffs=[handoff(bad)])", MODEL),
        ("Agent('Outer', tools=[bad.as_tool('ask', 'Ask.')])", MODEL),
        ("Agent('A', handoffs=[agents.Handoff('go', '', {}, plain_function, 'B')])", "'A' has a handoff whose agent"),
        ("Agent('A', mcp_servers=[MCPServerStdio({'command': 'true'})])", "'A' has MCP servers"),
        ("SandboxAgent('A')", "'A' needs a sandbox"),
        ("Agent('A', input_guardrails=[plain_function])", "'A' has the guardrail 'plain_function', which is not one"),
        ("Agent('A', output_guardrails=[plain_function])", "decorate it with @input_guardrail or @output_guardrail"),
        ("Agent('A', prompt={'id': 'p'})", "'A' has a prompt that is stored at OpenAI"),
        ("Agent('A', tools=[plain_function])", f"'A' has the tool 'plain_function', {NO_FUNCTION}"),
        ("Agent('A', tools=[search])", f"'A' has the tool 'web_search', {NO_FUNCTION}"),
        ("Agent('Outer', handoffs=[Agent('A', tools=[search])])", "'A' has the tool 'web_search'"),
        ("Agent('A', tools=[FileSearchTool(['store'])])", "'A' has the tool 'file_search'"),
        (
            "Agent('A', tools=[HostedMCPTool({'type': 'mcp', 'server_label': 's', 'server_url': 'http://x'})])",
            "'A' has the tool 'hosted_mcp'",
        ),
        ("Agent('A', tools=[CodeInterpreterTool({'type': 'code_interpreter', 'container': 'c'})])", NO_FUNCTION),
        (
            "Agent('A', tools=[ImageGenerationTool({'type': 'image_generation'})])",
            "'A' has the tool 'image_generation'",
        ),
        ("Agent('A', tools=[ComputerTool(agents.AsyncComputer)])", NO_FUNCTION),
        ("Agent('A', tools=[CustomTool('own', '', plain_function)])", "'A' has the tool 'own'"),
        ("Agent('A', tools=[LocalShellTool(plain_function)])", NO_FUNCTION),
        ("Agent('A', tools=[ShellTool(plain_function)])", NO_FUNCTION),
        ("Agent('A', tools=[ApplyPatchTool(None)])", NO_FUNCTION),
        ("Agent('A', tools=[ToolSearchTool()])", NO_FUNCTION),
        ("Agent('A', tools=[ProgrammaticToolCallingTool()])", NO_FUNCTION),
        (
            "Agent('A', tools=[function_tool(plain_function, defer_loading=True)])",
            "'A' has the tool 'plain_function', with options that only OpenAI's Responses API knows",
        ),
        (
            "Agent('A', tools=[function_tool(plain_function, needs_approval=True)])",
            "'A' has the tool 'plain_function', which needs an approval",
        ),
    ],
)
def test_an_agent_that_parley_cannot_run_is_refused_by_name(
    write: Callable[[str], None], agent: str, reason: str
) -> None:
    """Agents that are reached only through handoffs or as tools are checked, too."""
    write(f"{IMPORTS}agent = {agent}\n")
    assert reason in refusal()


@pytest.mark.parametrize("name", ["agent", "make", "Holder.agent", "Holder.make"])
def test_an_agent_is_loaded_from_a_module_or_made_by_a_function_in_it(write: Callable[[str], None], name: str) -> None:
    """The agent or the function may be an attribute of another object."""
    write(
        "from agents import Agent\n"
        "agent = Agent('A')\n"
        "def make(): return agent\n"
        "class Holder:\n"
        "    agent = agent\n"
        "    make = staticmethod(make)\n"
    )
    assert load(f"operator_agent:{name}").name == "A"


def test_agents_may_hand_over_to_each_other(write: Callable[[str], None]) -> None:
    """Each agent is checked once; a tool may be any function tool."""
    write(
        f"{IMPORTS}first = Agent('First', tools=[function_tool(plain_function)])\n"
        "agent = Agent('Second', handoffs=[first], tools=[first.as_tool('ask', 'Ask.')])\n"
        "first.handoffs += [handoff(agent), first]\n"
    )
    agent: Agent[Any] = load("operator_agent:agent")
    (first,) = agent.handoffs
    assert isinstance(first, Agent)
    assert isinstance(first.tools[0], FunctionTool)
