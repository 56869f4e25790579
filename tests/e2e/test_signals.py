"""A signal to stop, at any moment of `parley`'s start: it exits without an error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import pytest

from tests.support.logs import Logs
from tests.support.process import PARLEY, cpu_s, environment, leading_to, read

if TYPE_CHECKING:
    from parley.testing.upstream import ScriptedUpstream

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process hears is read from /proc"),
]

SCRIPT = (str(Path(sys.executable).with_name("parley")),)
# Milliseconds of CPU time: first the entry point, then the imports, the app, and the model or the workers.
MOMENTS = (0, 30, 60, 200, 500, 900, 1500)
# A process has one of these in its memory as soon as it has imported anything that takes time.
HEAVY = ("/_socket.", "/_ssl.", "/msgspec/")


class End(NamedTuple):
    """How a process ended, and its state when the signal was sent."""

    moment: int
    had_handlers: bool
    had_imported: bool
    exit_code: int
    errors: str
    left: list[str]


def has_handlers(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM; for SIGINT, Python itself has one."""
    caught = int(Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def has_imported(pid: int) -> bool:
    """Return whether a process has imported anything that takes time."""
    mapped = Path(f"/proc/{pid}/maps").read_text()
    return any(name in mapped for name in HEAVY)


async def ended(
    command: tuple[str, ...], number: signal.Signals, moment: int, temporary: Path, variables: dict[str, str]
) -> End:
    """Start a process, and send the signal at this moment of its CPU time, or when it serves if that is earlier."""
    await anyio.Path(temporary).mkdir()
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(**variables, TMPDIR=str(temporary)), stdout=pipe, stderr=pipe, start_new_session=True
    )
    logs, errors = Logs(), Logs()
    try:
        async with asyncio.TaskGroup() as group, asyncio.timeout(100):
            group.create_task(read(process.stdout, logs))
            group.create_task(read(process.stderr, errors))
            while cpu_s(process.pid) * 1000 < moment and '"event":"serving"' not in logs.getvalue():  # noqa: ASYNC110
                await anyio.sleep(0.001)  # the kernel sends no event
            had_imported = has_imported(process.pid)  # read first, because the handlers may be set in between
            had_handlers = has_handlers(process.pid)
            process.send_signal(number)
            exit_code = await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert '"level":"error"' not in logs.getvalue()
    return End(moment, had_handlers, had_imported, exit_code, errors.getvalue(), os.listdir(temporary))  # noqa: PTH208


@pytest.mark.parametrize(
    ("command", "workers", "number", "is_embedded"),
    [
        (PARLEY, "1", signal.SIGTERM, False),
        (SCRIPT, "2", signal.SIGINT, True),
    ],
    ids=["module", "workers that share a model"],
)
async def test_a_signal_at_any_moment_of_the_start_ends_it_without_a_trace(
    upstream: ScriptedUpstream,
    tmp_path: Path,
    command: tuple[str, ...],
    workers: str,
    number: signal.Signals,
    *,
    is_embedded: bool,
) -> None:
    """A signal may have its default action only before the process has run its first line."""
    variables = {"PARLEY_WORKERS": workers} if is_embedded else leading_to(upstream, PARLEY_WORKERS=workers)
    ends = [await ended(command, number, moment, tmp_path / str(moment), variables) for moment in MOMENTS]
    while all(end.had_handlers for end in ends) and len(ends) < 20:  # on a busy machine, the first look may be late
        ends.append(await ended(command, number, 0, tmp_path / f"again {len(ends)}", variables))
    for end in ends:
        assert end.had_handlers or not end.had_imported, end
        if end.had_handlers:
            assert (end.exit_code, end.errors) == (0, ""), end
        assert end.left == [], end
    assert {end.had_handlers for end in ends} == {False, True}
