"""Parley behind Node's servers: development servers, Next.js, and Express with `compression`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, NamedTuple

import anyio
import httpx
import pytest

from parley.testing.upstream import hang
from tests.support.installed import need
from tests.support.npm import documented, install
from tests.support.process import leading_to, parley
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from parley.testing.upstream import ScriptedUpstream

pytestmark = pytest.mark.long

REQUEST = {"message": "hi"}
NEVER = {f"PARLEY_{name}_S": "60" for name in ("HEARTBEAT", "HOLD_HEADERS", "FIRST_TOKEN_TIMEOUT", "IDLE_TIMEOUT")}


class Server(NamedTuple):
    """A server as documented in its section of docs/proxies.md: the file that the section shows, and the commands."""

    file: str
    command: str
    build: str | None = None
    path: str = "/chat"
    other_files: tuple[tuple[str, str], ...] = ()


SERVERS = {
    "Express": Server("program.cjs", "node program.cjs"),
    "Vite": Server("vite.config.js", "node_modules/.bin/vite --host 127.0.0.1 --strictPort --port 8080"),
    "webpack-dev-server": Server(
        "webpack.config.cjs",
        "node_modules/.bin/webpack serve --config webpack.config.cjs --mode development --host 127.0.0.1 --port 8080",
        other_files=(("src/index.js", ""),),
    ),
    "Next.js": Server(
        "app/api/chat/route.js",
        "node_modules/.bin/next start --hostname 127.0.0.1 --port 8080",
        build="node_modules/.bin/next build",
        path="/api/chat",
        other_files=(
            ("app/layout.js", "export default ({ children }) => <html><body>{children}</body></html>;"),
            ("app/page.js", "export default () => null;"),
        ),
    ),
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the packages of all servers."""
    need("node", "npm")
    folder = tmp_path_factory.mktemp("servers")
    install(folder, "servers")
    return folder


@asynccontextmanager
async def serving(workshop: Path, name: str, url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a server in front of Parley, and yield a client that accepts compressed responses."""
    server = SERVERS[name]
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = str(free.getsockname()[1])
    text, changes = re.subn(r"\b8001\b", url.rpartition(":")[2], documented("proxies.md", name))
    assert changes == 1
    text, command = (re.sub(r"\b8080\b", port, part) for part in (text, server.command))
    for file, content in ((server.file, text), *server.other_files):
        path = workshop / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    environment = {**os.environ, "NEXT_TELEMETRY_DISABLED": "1"}
    if server.build:
        subprocess.run(server.build.split(), cwd=workshop, env=environment, check=True, capture_output=True)  # noqa: ASYNC221, S603  # nothing else runs
    process = await asyncio.create_subprocess_exec(
        *command.split(),
        cwd=workshop,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            assert "gzip" in client.headers["accept-encoding"]
            await listening(client)
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def listening(client: httpx.AsyncClient) -> None:
    """Wait until a server answers; none of them sends a signal when it does."""
    with anyio.fail_after(60):
        while True:
            with suppress(httpx.TransportError):
                await client.get("/")
                return
            await anyio.sleep(0.05)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_hands_on_each_text_each_leave_and_each_break(
    upstream: ScriptedUpstream, workshop: Path, name: str
) -> None:
    """The servers have their documented configuration; each request reaches the model once."""
    gated = Gated()
    async with parley(**leading_to(upstream, **NEVER)) as served, serving(workshop, name, served.url) as client:
        upstream.script = gated
        async with client.stream("POST", SERVERS[name].path, json=REQUEST) as response:
            lines = response.aiter_lines()
            while await anext(lines) != "event: text":
                pass
            gated.may_end.set()  # the first text has arrived before the model ends
            assert [line async for line in lines if line.startswith("event: ")] == ["event: text", "event: done"]
        upstream.script = Gated()
        upstream.received.clear()
        async with client.stream("POST", SERVERS[name].path, json=REQUEST) as response:
            await anext(response.aiter_lines())
        with anyio.fail_after(30):  # no heartbeat would detect it by then
            await (await upstream.next_exchange()).gone.wait()
        upstream.script = hang
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.post(SERVERS[name].path, json=REQUEST))
                left = await upstream.next_exchange()
                scope.cancel()
        with anyio.fail_after(30):
            await left.gone.wait()
        upstream.script = Gated()

        async def read() -> None:
            async with client.stream("POST", SERVERS[name].path, json=REQUEST) as response:
                async for line in response.aiter_lines():
                    if line == "event: text":
                        served.process.kill()

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert len(upstream.exchanges) == 4
