"""The Prometheus of the tests: a real one, with the configuration of `deploy/`, which scrapes Parley more often."""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

DEPLOY = Path(__file__).parents[2] / "deploy"

_OFTEN = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a response of its API."""
        answer = (await self._client.get(f"/api/v1/{path}", params=parameters)).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    async def has(self, expression: str) -> bool:
        """Return whether an expression has a value that is a number."""
        results = (await self.get("query", query=expression))["result"]
        return any(result["value"][1] != "NaN" for result in results)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition is true; it can only be polled."""
    with anyio.fail_after(60):
        while not await condition():  # noqa: ASYNC110  # there is no event to wait for
            await anyio.sleep(0.1)


@asynccontextmanager
async def prometheus(parley_url: str, key: str, folder: Path) -> AsyncIterator[Prometheus]:
    """Start Prometheus with the configuration of `deploy/`, in this folder; yield when it has scraped Parley once."""
    shutil.copytree(DEPLOY / "prometheus", folder, dirs_exist_ok=True)
    (folder / "key").write_text(key)
    config = folder / "prometheus.yaml"
    text = config.read_text().replace("# authorization:", "authorization:")
    config.write_text(_OFTEN + text.replace("localhost:8000", parley_url.removeprefix("http://")))
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with httpx.AsyncClient(base_url=await _address(process.stderr), trust_env=False) as client:
            started = Prometheus(client)
            await until(lambda: started.has('up{job="parley"} == 1'))
            yield started
    finally:
        process.terminate()
        with anyio.fail_after(60):
            await process.communicate()


async def _address(log: asyncio.StreamReader | None) -> str:
    """Wait for the log line with the address, and return the URL."""
    assert log is not None
    text = ""
    with anyio.fail_after(60):
        while not (found := re.search(r'msg="Listening on" address=(\S+)', text)):
            line = await log.readline()
            assert line, f"it has ended:\n{text}"
            text += line.decode()
    return f"http://{found[1]}"
