"""Start a Parley for an evaluation, with the current settings, on a free loopback port."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec

_MOST_BYTES_OF_LINE: Final = 1 << 20
_START_TIMEOUT_S: Final = 150
_STOP_TIMEOUT_S: Final = 60


class ServingError(Exception):
    """Parley cannot be started; the message says why."""


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Start a Parley, yield its URL, and stop it at the end.

    Raises:
        ServingError: if Parley does not serve.
    """
    log = {"PARLEY_LOG_FORMAT": "json", "PARLEY_LOG_LEVEL": "info"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "parley",
        env={**os.environ, "PARLEY_HOST": "127.0.0.1", "PARLEY_PORT": "0", **log},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=_MOST_BYTES_OF_LINE,
        start_new_session=True,  # Ctrl-C must reach only the evaluation, which then stops Parley
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    reading = None
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            url = await _address(process.stdout)
        reading = asyncio.create_task(_drop(process.stdout))
        yield url
    except TimeoutError as error:
        raise ServingError(f"Parley did not start within {_START_TIMEOUT_S} seconds.") from error
    finally:
        await _stop(process, reading)


async def _address(log: asyncio.StreamReader) -> str:
    reason = "Parley stopped before it had started."
    async for line in log:
        entry: dict[str, Any] = {}
        with suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(line, type=dict[str, Any])
        if entry.get("event") == "serving":
            return str(entry["url"])
        reason = entry.get("reason", reason)
    raise ServingError(reason)


async def _drop(log: asyncio.StreamReader) -> None:
    """Read and discard Parley's log; otherwise the pipe would fill up, and Parley would drop lines."""
    while await log.read(_MOST_BYTES_OF_LINE):
        pass


async def _stop(process: asyncio.subprocess.Process, reading: asyncio.Task[None] | None) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        await process.wait()
    if reading is not None:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
