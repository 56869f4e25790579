"""A real browser, and a server for the pages that it opens."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import playwright.async_api

from parley.testing.exchange import Exchange
from parley.testing.upstream import in_turn, respond
from tests.support.installed import need

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from parley.testing.exchange import Script

# The browser runs as root in a container, and contacts no other host.
_FLAGS: Final = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
_ALLOWED: Final[dict[str, Any]] = {"access_control_allow_origin": "*", "access_control_allow_headers": "content-type"}


@asynccontextmanager
async def chromium() -> AsyncIterator[playwright.async_api.Browser]:
    """Run the installed Chromium."""
    need("chromium")
    async with (
        playwright.async_api.async_playwright() as driver,
        await driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=_FLAGS, ignore_default_args=["--disable-back-forward-cache"]
        ) as browser,
    ):
        yield browser


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder from an origin that is not Parley's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def broken_parley(may_end: asyncio.Event, end: Callable[[Exchange], Awaitable[None] | None] = Exchange.abort) -> Script:
    """Answer a page like a Parley that sends one text, and whose connection later ends like this."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(**_ALLOWED)
        await exchange.write(b'event: start\ndata: {"type":"start","seq":0,"correlation_id":"c","model":"m"}\n\n')
        await exchange.write(b'event: text\ndata: {"type":"text","seq":1,"text":"first"}\n\n')
        await may_end.wait()
        if ending := end(exchange):
            await ending

    return in_turn(respond(200, {}, **_ALLOWED), script)  # the browser sends a CORS preflight first


def refusing_parley(status: int, body: object) -> Script:
    """Answer a page like a Parley that refuses the request."""
    return in_turn(respond(200, {}, **_ALLOWED), respond(status, body, **_ALLOWED))


async def turn(page: playwright.async_api.Page, state: str) -> None:
    """Make a page see its tab as hidden or visible; without a window, no tab of a browser is ever hidden."""
    await page.evaluate(
        """state => {
            Object.defineProperty(document, 'hidden', { value: state === 'hidden', configurable: true });
            Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        state,
    )
