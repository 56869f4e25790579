"""The proxies of the tests: real ones, which run with the documented files, and clients for each of them."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx

from tests.support.installed import need
from tests.support.process import leading_to, parley

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from parley.testing.upstream import ScriptedUpstream

    Ask = Callable[[str], Awaitable[Any]]

DEPLOY: Final = Path(__file__).parents[2] / "deploy"

_NGINX: Final = """
pid nginx.pid;
error_log stderr;
daemon off;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include documented/nginx.conf;
}
"""
_PROXIES: Final = {
    "nginx": ("nginx.conf", ("nginx", "-e", "stderr", "-p", ".", "-c", "outer.conf")),
    "haproxy": ("haproxy.cfg", ("haproxy", "-f", "documented/haproxy.cfg")),
    "envoy": ("envoy.yaml", ("envoy", "-c", "documented/envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1")),
}
"""For each proxy, its documented file and the command that runs it."""

PROXIES: Final = tuple(_PROXIES)


@asynccontextmanager
async def proxy(name: str, folder: Path, first: str, second: str) -> AsyncIterator[str]:
    """Run a proxy for two replicas, which may be the same; yield its URL when it forwards requests.

    Only the ports differ from those of the documented file.
    """
    file, command = _PROXIES[name]
    need(command[0])
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    text = (DEPLOY / file).read_text()
    for documented, replacement in ((8080, url), (8001, first), (8002, second)):
        port = replacement.rpartition(":")[2]
        text, changes = re.subn(rf"(127\.0\.0\.1(?::|, port_value: )){documented}\b", rf"\g<1>{port}", text)
        assert changes == 1
    place = anyio.Path(folder, name, "documented")
    await place.mkdir(parents=True)
    await (place / file).write_text(text)
    await (place.parent / "outer.conf").write_text(_NGINX)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=place.parent, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            await ready(client)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def ready(client: httpx.AsyncClient) -> None:
    """Wait until a proxy forwards requests; none of them sends a signal when it does."""
    with anyio.fail_after(60):
        while True:
            with suppress(httpx.TransportError):  # it does not listen yet
                if (await client.get("/health/ready")).status_code == 200:
                    return
            await anyio.sleep(0.05)


class Ways:
    """The ways to one Parley, directly and through each proxy, or to two, through proxies; `asked` counts the chats."""

    def __init__(self, urls: dict[str, str]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)
        self.clients = {
            way: httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, limits=limits)
            for way, url in urls.items()
        }
        self.asked = 0

    async def each(self, ask: Ask, times: int = 1) -> dict[str, list[Any]]:
        """Run `ask` for all ways at once, and return the results."""
        results: dict[str, list[Any]] = {way: [] for way in self.clients}

        async def one(way: str) -> None:
            results[way].append(await ask(way))

        async with anyio.create_task_group() as group:
            for way in [*self.clients] * times:
                group.start_soon(one, way)
        return results

    @asynccontextmanager
    async def asking(self, way: str, message: str = "hi", path: str = "/chat") -> AsyncIterator[httpx.Response]:
        """Send a message; yield the response when its headers have arrived."""
        self.asked += 1
        async with self.clients[way].stream("POST", path, json={"message": message}) as response:
            yield response

    async def ask(self, way: str, message: str = "hi", path: str = "/chat") -> httpx.Response:
        """Send a message, and return the response when it is complete."""
        async with self.asking(way, message, path) as response:
            await response.aread()
        return response


@asynccontextmanager
async def ways(folder: Path, first: str, second: str | None = None) -> AsyncIterator[Ways]:
    """Run the proxies for one or two Parleys; for one, also provide the direct way to it."""
    async with AsyncExitStack() as stack:
        urls = {} if second else {"direct": first}
        for name in PROXIES:
            urls[name] = await stack.enter_async_context(proxy(name, folder, first, second or first))
        all_of_them = Ways(urls)
        for client in all_of_them.clients.values():
            await stack.enter_async_context(client)
        yield all_of_them


@asynccontextmanager
async def before_one(folder: Path, upstream: ScriptedUpstream, **variables: str) -> AsyncIterator[Ways]:
    """Run one Parley with the proxies in front of it; at the end, check that each chat asked the upstream once."""
    async with (
        parley(**leading_to(upstream, PARLEY_RETRIES="0", **variables)) as served,
        ways(folder, served.url) as it,
    ):
        yield it
    assert len(upstream.exchanges) == it.asked
