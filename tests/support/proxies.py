"""Owns the proxies of the tests: real ones, run with the files that are documented."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import httpx

from tests.support.installed import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
    """Run a proxy before two replicas, which may be the same; yield its URL when it passes requests on.

    Only the ports are not those of its documented file.
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
    """Wait until a proxy passes on what it gets; none of them tells."""
    with anyio.fail_after(60):
        while True:
            with suppress(httpx.TransportError):  # it does not listen yet
                if (await client.get("/health/ready")).status_code == 200:
                    return
            await anyio.sleep(0.05)
