"""Parley behind Node's usual middleware: `compression`, and the proxy that development servers are made of."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from tests.support.installed import need
from tests.support.npm import documented, install
from tests.support.process import leading_to, parley
from tests.support.proxies import ready
from tests.support.upstream import Gated, hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.long

REQUEST = {"message": "hi"}
NEVER = {f"PARLEY_{name}_S": "60" for name in ("HEARTBEAT", "HOLD_HEADERS", "FIRST_TOKEN_TIMEOUT", "IDLE_TIMEOUT")}


@asynccontextmanager
async def express(folder: Path, url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run the documented program before this Parley, and yield a client that takes compressed answers."""
    need("node", "npm")
    install(folder, "express")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = str(free.getsockname()[1])
    text = documented("proxies.md", "Express")
    for documented_port, ours in (("8001", url.rpartition(":")[2]), ("8080", port)):
        text, changes = re.subn(rf"\b{documented_port}\b", ours, text)
        assert changes == 1
    await anyio.Path(folder, "program.cjs").write_text(text)
    process = await asyncio.create_subprocess_exec("node", "program.cjs", cwd=folder)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            assert "gzip" in client.headers["accept-encoding"]
            await ready(client)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def test_express_hands_on_each_text_each_leave_and_each_break(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """With what is documented; each request reaches the model once."""
    gated = Gated()
    async with parley(**leading_to(upstream, **NEVER)) as served, express(tmp_path, served.url) as client:
        upstream.script = gated
        async with client.stream("POST", "/chat", json=REQUEST) as response:
            lines = response.aiter_lines()
            while await anext(lines) != "event: text":
                pass
            gated.may_end.set()  # the first text has come before the last is made
            assert [line async for line in lines if line.startswith("event: ")] == ["event: text", "event: done"]
        upstream.script = Gated()
        upstream.received.clear()
        async with client.stream("POST", "/chat", json=REQUEST) as response:
            await anext(response.aiter_lines())
        with anyio.fail_after(30):  # no heartbeat would tell by then
            await (await upstream.next_exchange()).gone.wait()
        upstream.script = hang
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.post("/chat", json=REQUEST))
                left = await upstream.next_exchange()
                scope.cancel()
        with anyio.fail_after(30):
            await left.gone.wait()
        upstream.script = Gated()

        async def read() -> None:
            async with client.stream("POST", "/chat", json=REQUEST) as response:
                async for line in response.aiter_lines():
                    if line == "event: text":
                        served.process.kill()

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert len(upstream.exchanges) == 4
