"""Owns the Parley of the end-to-end tests: `parley` as a process of its own, as an operator starts it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx

from tests.support.canaries import CANARIES, CANARY_KEY
from tests.support.logs import Logs

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Iterator

    from tests.support.upstream import ScriptedUpstream

PARLEY = (sys.executable, "-m", "parley")


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which only these settings are made, on a free port, and everything is logged."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "OPENAI_"))}
    return {**kept, "PARLEY_PORT": "0", "PARLEY_LOG_LEVEL": "debug", **variables}


def leading_to(upstream: ScriptedUpstream, **variables: str) -> dict[str, str]:
    """Return the variables that make a Parley use the scripted upstream."""
    return {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": CANARY_KEY, "PARLEY_MODEL": "scripted-1", **variables}


class Parley:
    """A Parley that serves: its process, its logs, and a client for it."""

    def __init__(self, process: Process, logs: Logs) -> None:
        self.process = process
        self.logs = logs
        self.url = ""

    def client(self) -> httpx.AsyncClient:
        """Make a client."""
        return httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False)

    async def wait(self) -> int:
        """Wait until the process has ended by itself, and return its exit code."""
        with anyio.fail_after(20):
            return await self.process.wait()


@asynccontextmanager
async def parley(**variables: str) -> AsyncIterator[Parley]:
    """Start `parley` with these variables; yield when it serves; let it end by SIGTERM unless it already has."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PARLEY, env=environment(**variables), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    served, errors = Parley(process, Logs()), Logs()
    readers = [
        asyncio.create_task(_read(process.stdout, served.logs)),
        asyncio.create_task(_read(process.stderr, errors)),
    ]
    try:
        served.url = await _address(served.logs)
        yield served
    finally:
        if process.returncode is None:
            process.terminate()
        await served.wait()
        await asyncio.gather(*readers)
        assert errors.getvalue() == "", "all is logged, on standard output"
        assert not any(canary in served.logs.getvalue() for canary in CANARIES)


async def _read(stream: asyncio.StreamReader | None, logs: Logs) -> None:
    assert stream is not None
    async for line in stream:
        logs.write(line.decode())


async def _address(logs: Logs) -> str:
    """Wait for the line that says where it serves."""
    with anyio.fail_after(60):
        while not (found := re.search(r"Uvicorn running on (http://\S+:\d+)", logs.getvalue())):
            await logs.written()
    return found[1]


async def fails(**variables: str) -> tuple[int, str, str]:
    """Run `parley` with these variables, which it cannot serve with; return exit code, output and errors."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*PARLEY, env=environment(**variables), stdout=pipe, stderr=pipe)
    with anyio.fail_after(60):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def resident_kb(pid: int) -> int:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


@contextmanager
def watched(pid: int) -> Iterator[asyncio.Event]:
    """Watch a process that is not our child; the event is set when it has ended."""
    gone = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        yield gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
