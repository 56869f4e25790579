"""Every wire case, replayed over both operations: Parley reports what the upstream meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx
import msgspec
import openai
import pytest

from parley.settings import Secret, Settings
from parley.testing.upstream import ScriptedUpstream
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.logs import Logs
from tests.support.outcomes import ask, differing
from tests.support.replay import Replay
from tests.support.running import running
from tests.support.wire_cases import WireCase, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

CASES: Final = load()
PATHS: Final = ("/chat", "/chat/complete")

# Parley fails these cases on purpose, although openai-python reads a complete answer from them.
OPENAI_READS_BETTER: Final = frozenset({"comments_for_25s", "deflate", "gzip", "thinks_beyond_the_time_of_the_request"})


def named(cases: Iterable[WireCase]) -> list[Any]:
    """Return the cases as pytest parameters with their names as IDs."""
    return [pytest.param(case, id=case.name) for case in cases]


def test_the_lists_name_cases() -> None:
    """Otherwise a misspelt name would go unnoticed."""
    assert CASES.keys() >= OPENAI_READS_BETTER


@pytest.fixture(scope="module")
async def replaying() -> AsyncIterator[ScriptedUpstream]:
    """Run the upstream that replays the cases."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def parley(replaying: ScriptedUpstream) -> AsyncIterator[httpx.AsyncClient]:
    """Run one Parley for all cases, except for those from which it may learn."""
    async with running(settings(replaying), Logs()) as client:
        yield client


@pytest.fixture(scope="module")
async def openai_client(replaying: ScriptedUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    """Make one openai-python client for all cases."""
    transport = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=replaying.url, api_key=CANARY_KEY, timeout=30, http_client=transport
    ) as client:
        yield client


def settings(upstream: ScriptedUpstream, **more: Any) -> Settings:
    """Return settings with the timeouts and retries of production."""
    return Settings(
        openai_base_url=upstream.url,
        openai_api_key=Secret(CANARY_KEY),
        model="scripted-1",
        log_level="debug",
        log_format="json",
        **more,
    )


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.kind != "requests"))
async def test_every_answer_is_read_as_it_is_meant(
    parley: httpx.AsyncClient, replaying: ScriptedUpstream, case: WireCase
) -> None:
    """Text, ending, usage and attempts are the same over both operations."""
    differences = []
    for path in PATHS:
        replaying.script = replay = Replay(case)
        outcome = await ask(parley, path)
        differences += [f"{path}: {one}" for one in differing(case.expect, outcome, replay.tries)]
        assert not outcome.reasoning, "nobody asked what the model thought"
    assert not differences


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.kind == "requests"))
async def test_every_upstream_is_asked_as_it_can_be_asked(replaying: ScriptedUpstream, case: WireCase) -> None:
    """Parley does not send a refused parameter again, and the next request is right the first time."""
    differences = []
    expected = case.expect
    async with running(settings(replaying, **case.settings), Logs()) as client:
        for path in PATHS:
            replaying.script = replay = Replay(case)
            outcome = await ask(client, path)
            differences += [f"{path}: {one}" for one in differing(expected, outcome, replay.tries)]
            expected = msgspec.structs.replace(expected, tries=expected.tries_again or expected.tries)
    assert not differences


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.expect.reasoning is not None))
async def test_what_the_model_thought_is_told_to_who_asks(
    parley: httpx.AsyncClient, replaying: ScriptedUpstream, case: WireCase
) -> None:
    """Everything else is the same as without reasoning."""
    differences = []
    for path in PATHS:
        replaying.script = replay = Replay(case)
        outcome = await ask(parley, path, include_reasoning=True)
        differences += [f"{path}: {one}" for one in differing(case.expect, outcome, replay.tries)]
        if outcome.reasoning != case.expect.reasoning:
            differences.append(f"{path}: reasoning {outcome.reasoning!r} instead of {case.expect.reasoning!r}")
    assert not differences


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.has_an_answer))
async def test_openai_python_reads_no_case_better(
    parley: httpx.AsyncClient, openai_client: openai.AsyncOpenAI, replaying: ScriptedUpstream, case: WireCase
) -> None:
    """Better means: openai-python gets the whole text and a finish reason, and Parley gets less text."""
    replaying.script = Replay(case)
    is_better = await openai_reads_all(openai_client, case.expect.whole_text)
    if is_better:
        replaying.script = Replay(case)
        outcome = await ask(parley, "/chat")
        is_better = outcome.text is None or case.expect.whole_text not in {outcome.text, "*"}

    assert is_better == (case.name in OPENAI_READS_BETTER)


async def openai_reads_all(client: openai.AsyncOpenAI, whole: str) -> bool:
    """Return whether a user of openai-python would get this text and a finish reason."""
    text, reason = "", None
    try:
        with anyio.fail_after(120):
            stream = await client.chat.completions.create(
                model="scripted-1",
                messages=[{"role": "user", "content": CANARY}],
                max_tokens=2000,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices or ():
                        text += (choice.delta.content or "") + (choice.delta.refusal or "")
                        reason = choice.finish_reason or reason
    except (openai.OpenAIError, httpx.HTTPError, ValueError, AttributeError, TypeError, TimeoutError):
        return False
    return reason is not None and whole in {text, "*"}
