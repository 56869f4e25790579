"""The Parley of the end-to-end tests: `parley` as a separate process, as an operator starts it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx

from tests.support.canaries import CANARIES, CANARY_KEY
from tests.support.logs import Logs

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Iterator

    from parley.testing.upstream import ScriptedUpstream

PARLEY = (sys.executable, "-m", "parley")

# Runs the `PARLEY` command that follows it, as if uvloop were not installed.
_WITHOUT_UVLOOP = """
import runpy, sys
sys.modules["uvloop"] = None
del sys.argv[1:4]
runpy.run_module("parley", run_name="__main__", alter_sys=True)
"""
LOOPS = {"uvloop": (), "asyncio": (sys.executable, "-c", _WITHOUT_UVLOOP)}
"""For each event loop, the command to put before `PARLEY` to run it on this loop."""


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with no settings but these, a free port and the log level debug."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "OPENAI_", "OTEL_"))}
    ours = {"PARLEY_PORT": "0", "PARLEY_LOG_LEVEL": "debug", "PYTHON_DOTENV_DISABLED": "1"}
    return {**kept, **ours, **variables}


def leading_to(upstream: ScriptedUpstream, **variables: str) -> dict[str, str]:
    """Return the variables that make a Parley use the scripted upstream."""
    return {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": CANARY_KEY, "PARLEY_MODEL": "scripted-1", **variables}


class Parley:
    """A running Parley: its process, its logs, and clients for it."""

    def __init__(self, process: Process, logs: Logs) -> None:
        self.process = process
        self.logs = logs
        self.errors = Logs()
        self.url = ""

    def client(self) -> httpx.AsyncClient:
        """Return a new client."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; the default one takes 20 ms to load certificates
        return httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False, verify=tls)

    async def interrupt_twice(self) -> None:
        """Press Ctrl-C, and again when the second is not taken for an echo of the first."""
        self.process.send_signal(signal.SIGINT)
        await self.logs.line("Shutting down")
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), 0.6)
            raise AssertionError("Parley did not wait for its streams")
        self.process.send_signal(signal.SIGINT)

    async def wait(self) -> int:
        """Wait until the process has ended by itself, and return its exit code."""
        with anyio.fail_after(60):
            return await self.process.wait()


@asynccontextmanager
async def parley(*prefix: str, **variables: str) -> AsyncIterator[Parley]:
    """Start `parley` with these variables; yield when it serves; stop it with SIGTERM unless it has ended already.

    `prefix` is a command that runs the following `parley` command in its own process, if a test needs one.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *prefix, *PARLEY, env=environment(**variables), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    served = Parley(process, Logs())
    readers = [
        asyncio.create_task(read(process.stdout, served.logs)),
        asyncio.create_task(read(process.stderr, served.errors)),
    ]
    try:
        is_logged = variables.get("PARLEY_LOG_LEVEL") not in {"warning", "error"}
        served.url = await (address(served.logs) if is_logged else _listening(process.pid))
        yield served
    finally:
        if process.returncode is None:
            process.terminate()
        await served.wait()
        await asyncio.gather(*readers)
        assert served.errors.getvalue() == "", "all is logged, on standard output"
        assert not any(canary in served.logs.getvalue() for canary in CANARIES)


async def read(stream: asyncio.StreamReader | None, logs: Logs) -> None:
    """Write the output of a process to the logs."""
    assert stream is not None
    async for line in stream:
        logs.write(line.decode())


async def address(logs: Logs) -> str:
    """Wait for the log line with the URL, and return the URL."""
    with anyio.fail_after(60):
        while not (found := re.search(r"url\b.{1,20}?(http://(?:\[\S+?\]|[^\s\[]+?):\d+)", logs.getvalue())):
            await logs.written()
    return found[1]


async def _listening(pid: int) -> str:
    """Wait until the process listens, and return its URL, as the kernel knows it."""
    with anyio.fail_after(60):
        while (url := listening_address(pid)) is None:  # noqa: ASYNC110  # the kernel sends no event
            await anyio.sleep(0.05)
    return url


def listening_address(pid: int) -> str | None:
    """Return the URL at which a process listens, according to Linux, or `None`."""
    sockets = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in sockets:  # the state LISTEN
            address, _, port = local.partition(":")
            return f"http://{socket.inet_ntoa(bytes.fromhex(address)[::-1])}:{int(port, 16)}"
    return None


async def command(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run a `parley` that ends by itself, with these arguments and variables; return exit code, output and errors."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PARLEY, *arguments, env=environment(**variables), stdout=pipe, stderr=pipe
    )
    with anyio.fail_after(280):  # an evaluation of the embedded model takes a minute
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process's main thread has used, in seconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def resident_kb(pid: int) -> int:
    """Return a process's resident memory, in KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def arguments(pid: int) -> dict[int, list[str]]:
    """Return the command lines of a process and of all its descendants, by process id."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended
            parents[int(status.parent.name)] = int(status.read_text().partition("PPid:")[2].split()[0])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return {member: Path(f"/proc/{member}/cmdline").read_text().rstrip("\0").split("\0") for member in sorted(family)}


@contextmanager
def watched(pid: int) -> Iterator[asyncio.Event]:
    """Watch a process that is not our child; the event is set when the process has ended."""
    gone = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        yield gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
