"""What a killed `parley` with workers leaves in the temporary directory, and when it is removed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import anyio
import httpx_sse
import pytest

from tests.support.process import leading_to, parley, watched
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from pathlib import Path

    from parley.testing.upstream import ScriptedUpstream
    from tests.support.process import Parley

REQUEST = {"message": "hi"}

pytestmark = pytest.mark.long


async def folders(temporary: Path) -> set[str]:
    """Return the names in the temporary directory."""
    return {path.name async for path in anyio.Path(temporary).iterdir()}


async def workers_of(served: Parley) -> list[int]:
    """Wait until two workers serve, and return their process ids."""
    await served.logs.line("Application startup complete.", number=2)
    return [int(number) for number in re.findall(r"Started server process \[(\d+)\]", served.logs.getvalue())]


async def test_what_a_killed_parley_has_left_is_removed_at_the_next_start(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Parley keeps the folder until its workers have ended, and never removes that of a running Parley."""
    times = {f"PARLEY_{name}_TIMEOUT_S": "300" for name in ("REQUEST", "IDLE", "DRAIN")}
    variables = leading_to(upstream, TMPDIR=str(tmp_path), **times)
    with_workers = {**variables, "PARLEY_WORKERS": "2"}
    gated = upstream.script = Gated()
    async with parley(**with_workers) as running:
        await workers_of(running)
        (runnings,) = await folders(tmp_path)
        async with parley(**with_workers) as killed, killed.client() as client:
            pids = await workers_of(killed)
            (killeds,) = await folders(tmp_path) - {runnings}
            with watched(pids[0]) as first, watched(pids[1]) as second:
                async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
                    events = source.aiter_sse()
                    await anext(events)
                    killed.process.kill()
                    await killed.logs.line("Shutting down", number=2)
                    async with parley(**variables):
                        assert await folders(tmp_path) == {runnings, killeds}
                    gated.may_end.set()
                    assert [event.event async for event in events][-1] == "done"
                with anyio.fail_after(60):
                    await first.wait()
                    await second.wait()
        assert await folders(tmp_path) == {runnings, killeds}
        async with parley(**variables):
            assert await folders(tmp_path) == {runnings}
        async with running.client() as client:
            await client.post("/chat", json=REQUEST)
        async with running.client() as client:
            assert 'parley_chats_total{ending="stop"} 1.0' in (await client.get("/metrics")).text
    assert await folders(tmp_path) == set()
