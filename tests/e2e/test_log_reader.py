"""`parley` as a process whose standard output is not read, is read too late, or is closed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx
import pytest

from parley.telemetry.log_queue import MOST_BYTES
from tests.support.process import PARLEY, environment, leading_to, listening_address

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from parley.testing.upstream import ScriptedUpstream

REQUEST = {"message": "hi"}
PIPE_BYTES = 4096
# Their lines, each longer than 400 bytes, are more than the queue and the pipe can hold.
MANY = (MOST_BYTES + PIPE_BYTES) // 400
ASKED = b"GET /nothing HTTP/1.1\r\nHost: x\r\nX-Correlation-ID: %0128d\r\n\r\n"
AHEAD = 100
DROPPED: Final = "parley_log_lines_dropped_total"


class Served:
    """A Parley, the read end of its standard output, and a client for it."""

    def __init__(self, process: Process, reader: int, client: httpx.AsyncClient) -> None:
        self.process = process
        self.reader = reader
        self.client = client

    async def ask(self, number: int) -> None:
        """Send this many cheap requests, each of which logs a line with its number."""
        reader, writer = await asyncio.open_connection(self.client.base_url.host, self.client.base_url.port)
        for start in range(0, number, AHEAD):
            batch = range(start, min(start + AHEAD, number))
            writer.write(b"".join(ASKED % asked for asked in batch))
            for _ in batch:
                await reader.readuntil(b"HTTP/1.1 404 ")
        writer.close()

    async def dropped(self) -> float:
        """Return the number of dropped lines according to the metrics."""
        text = (await self.client.get("/metrics")).raise_for_status().text
        return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(DROPPED))

    async def end(self) -> tuple[int | None, str]:
        """Stop it, wait until it has ended, and return its exit code and what it wrote to standard error."""
        self.process.terminate()
        with anyio.fail_after(60):
            _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()

    async def read(self, number: float = math.inf) -> list[dict[str, Any]]:
        """Read at least this many lines, or all until the end; each line must be complete."""
        data = b""
        while data.count(b"\n") < number and (more := await asyncio.to_thread(os.read, self.reader, 65_536)):
            data += more
        assert data.endswith(b"\n")
        return [json.loads(line) for line in data.splitlines()]


@asynccontextmanager
async def unread(
    upstream: ScriptedUpstream, *, reader: bool = True, command: tuple[str, ...] = PARLEY, **variables: str
) -> AsyncIterator[Served]:
    """Start `parley` with a small pipe whose reader does not read, or has gone."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    if not reader:
        os.close(read_end)
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment(**leading_to(upstream, **variables)),
        stdout=write_end,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write_end)
    try:
        with anyio.fail_after(60):
            while (url := listening_address(process.pid)) is None:  # noqa: ASYNC110  # the kernel sends no event
                await anyio.sleep(0.05)
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            yield Served(process, read_end, client)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        if reader:
            os.close(read_end)


@pytest.mark.long
async def test_logs_that_nobody_reads_stop_neither_answers_nor_the_end(upstream: ScriptedUpstream) -> None:
    """Lines that find no room are dropped, and the metrics count those of all workers."""
    async with unread(upstream, PARLEY_WORKERS="2") as served:
        await served.ask(MANY)
        assert await served.dropped() > 0
        assert (await served.client.post("/chat", json=REQUEST)).status_code == 200
        assert await served.end() == (0, "")


@pytest.mark.long
async def test_a_reader_that_comes_back_learns_how_much_it_missed(upstream: ScriptedUpstream) -> None:
    """The lines that were not dropped are complete and in order; another line tells how many were dropped."""
    async with unread(upstream, PARLEY_LOG_LEVEL="info") as served:
        await served.ask(MANY)
        dropped = await served.dropped()
        lines = await served.read(MANY - dropped)
        await served.ask(1)
        assert await served.end() == (0, "")
        lines += await served.read()
    told = [line for line in lines if line["event"] == "log_lines_dropped"]
    assert [(line["level"], line["number"], line.get("correlation_id")) for line in told] == [("error", dropped, None)]
    asked = [int(line["correlation_id"]) for line in lines if line["event"] == "request"]
    assert asked == [*range(len(asked) - 1), 0]
    assert len(asked) + dropped == MANY + 1


def is_at_rest(pid: int) -> bool:
    """Return whether all threads of a process are waiting."""
    return all(
        status.read_text().rpartition(")")[2].split()[0] == "S" for status in Path(f"/proc/{pid}/task").glob("*/stat")
    )


async def test_a_reader_that_has_gone_changes_nothing(upstream: ScriptedUpstream) -> None:
    """Parley does not retry any line, shows no error, and exits as cleanly as with a reader."""
    async with unread(upstream, reader=False) as served:
        for _ in range(9):
            assert (await served.client.post("/chat", json=REQUEST)).status_code == 200
        assert await served.dropped() >= 9
        with anyio.fail_after(60):
            while not is_at_rest(served.process.pid):  # noqa: ASYNC110  # the kernel sends no event
                await anyio.sleep(0.01)
        assert await served.end() == (0, "")


async def test_a_standard_output_that_is_closed_changes_nothing(upstream: ScriptedUpstream) -> None:
    """Standard output is closed from the start."""
    script = ("sh", "-c", f"exec {' '.join(PARLEY)} >&-")
    async with unread(upstream, command=script) as served:
        assert (await served.client.post("/chat", json=REQUEST)).status_code == 200
        assert await served.dropped() > 0
        assert await served.end() == (0, "")


AT_THE_END = """
import sys
from parley.settings import Settings
from parley.telemetry import logs
logs.configure(Settings())
structlog = __import__("structlog")
for number in range(100):
    structlog.get_logger("parley").warning("something", filler="x" * 600)
print("said by a library")
sys.exit(7)
"""

FORKED = """
import os, sys
from parley.settings import Settings
from parley.telemetry import logs
logs.configure(Settings())
log = __import__("structlog").get_logger("parley")
log.warning("before")
if child := os.fork():
    _, status = os.waitpid(child, 0)
    log.warning("after", status=status)
else:
    log.warning("within")
"""


async def test_what_a_library_prints_does_not_hold_up_the_end() -> None:
    """Otherwise, the interpreter would flush at exit, and wait for the reader forever."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", AT_THE_END, stdout=write_end)
    os.close(write_end)
    with anyio.fail_after(60):
        assert await process.wait() == 7
    os.close(read_end)


async def test_a_process_that_is_forked_logs_too() -> None:
    """No line is lost or duplicated."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-Wignore", "-c", FORKED, stdout=pipe)
    output, _ = await process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["event"], line.get("status")) for line in lines] == [("before", None), ("within", None), ("after", 0)]
