"""How the upstream's bytes are read, where aiohttp alone would lose some."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest
from agents import ModelSettings

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.run import Run
from parley.chat.watch import Untraced
from parley.providers.model import read
from parley.providers.upstream import UpstreamProvider
from parley.settings import Settings
from parley.telemetry.metrics import metrics
from tests.support.faults import after, close, reset

if TYPE_CHECKING:
    from tests.support.upstream import Script, ScriptedUpstream


@pytest.mark.parametrize("then", [reset, close])
async def test_what_came_before_the_connection_broke_is_not_lost(upstream: ScriptedUpstream, then: Script) -> None:
    """However late it is read: a client that is slow may have held up the reading."""
    upstream.script = after(("a", "b", "c"), then)
    provider = UpstreamProvider(
        base_url=upstream.url,
        api_key=None,
        model_name="scripted-1",
        instructions=None,
        temperature=None,
        connect_timeout_s=5,
        watch=metrics(),
        tracer=Untraced(),
    )
    run = Run(Settings(), asyncio.get_running_loop().time() + 60)
    async with provider, provider.ask(None, [], ModelSettings(), {}) as content:
        with anyio.fail_after(10):
            while content.exception() is None:  # noqa: ASYNC110  # aiohttp tells nobody
                await asyncio.sleep(0)
        with pytest.raises(ChatError) as caught:
            await read(content, run)
    assert caught.value.code is ErrorCode.UPSTREAM_TRUNCATED
    assert await run.take() == "abc"
    assert run.deltas == 3
