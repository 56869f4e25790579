"""`parley` as a process: how it and its workers end, and what it still does for its clients."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import httpx_sse
import pytest

from parley.chat.errors import ErrorCode
from parley.chat.events import Usage
from parley.testing.upstream import ScriptedUpstream, delta, hang
from parley.wire.schema import DoneChunk, ErrorChunk, StartChunk, StreamChunk, TextChunk
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.installed import need
from tests.support.logs import Logs
from tests.support.process import PARLEY, address, arguments, environment, leading_to, parley, read, watched
from tests.support.running import decode_chunk, problem, stream
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from parley.testing.exchange import Exchange

REQUEST = {"message": CANARY}
STREAMS = 100


async def refused(url: httpx.URL) -> None:
    """Wait until the address refuses connections."""
    with anyio.fail_after(60):
        while True:
            await asyncio.sleep(0)
            try:
                socket.create_connection((url.host, url.port)).close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # Parley closed it at this moment
                continue


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
async def test_a_signal_to_stop_lets_streams_end_and_refuses_new_prompts(
    upstream: ScriptedUpstream, number: signal.Signals, workers: int
) -> None:
    """New prompts come over an open connection, as Parley accepts no new one. Then the process ends by itself."""
    gated = upstream.script = Gated()
    variables = leading_to(upstream, PARLEY_WORKERS=str(workers))
    async with parley(**variables) as served, served.client() as client:
        await served.logs.line("Application startup complete.", number=workers)
        # A request with an incomplete body keeps its connection open.
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{")
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
            events = source.aiter_sse()
            chunks = [decode_chunk((await anext(events)).data)]
            served.process.send_signal(number)
            await served.logs.line("Shutting down", number=workers)
            await refused(client.base_url)
            writer.write(b'"message":"Hi"}')
            refusal = await reader.read()
            gated.may_end.set()
            chunks += [decode_chunk(event.data) async for event in events]
        writer.close()
        assert await served.wait() == 0
    assert [chunk.__struct_config__.tag for chunk in chunks] == ["start", "text", "text", "done"]
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"shutting_down"' in refusal
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.long
async def test_streams_that_do_not_end_in_time_are_ended_with_the_truth(
    upstream: ScriptedUpstream, workers: int
) -> None:
    """All hundred get an error chunk and their usage; then the process ends, without a second signal."""
    begun = 0
    all_begun = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        nonlocal begun
        await exchange.head()
        await exchange.events(delta("a"))
        begun += 1
        if begun == STREAMS:
            all_begun.set()
        await exchange.gone.wait()

    upstream.script = script
    streams: list[list[StreamChunk]] = []
    variables = leading_to(upstream, PARLEY_DRAIN_TIMEOUT_S="1", PARLEY_WORKERS=str(workers))
    async with parley(**variables) as served, served.client() as client:
        await served.logs.line("Application startup complete.", number=workers)

        async def read() -> None:
            streams.append(await stream(client, REQUEST))

        async with anyio.create_task_group() as group:
            for _ in range(STREAMS):
                group.start_soon(read)
            await all_begun.wait()
            served.process.send_signal(signal.SIGTERM)
            assert await served.wait() == 0
        lines = served.logs.lines("request")
    assert len(streams) == STREAMS
    for start, text, error in streams:
        assert isinstance(start, StartChunk)
        assert text == TextChunk(seq=1, text="a")
        assert isinstance(error, ErrorChunk)
        assert (error.error.code, error.error.retryable) == (ErrorCode.SHUTTING_DOWN, True)
        assert error.usage == Usage.estimate(1)
    assert [line["error_code"] for line in lines] == ["shutting_down"] * STREAMS


async def test_who_waits_for_a_first_text_or_a_turn_is_told_too(upstream: ScriptedUpstream) -> None:
    """Both get an HTTP error, because nothing has been sent yet."""
    upstream.script = hang
    variables = leading_to(upstream, PARLEY_DRAIN_TIMEOUT_S="0.5", PARLEY_MAX_STREAMS="1", PARLEY_QUEUE_TIMEOUT_S="60")
    responses: list[httpx.Response] = []
    async with parley(**variables) as served, served.client() as client:

        async def ask() -> None:
            responses.append(await client.post("/chat", json=REQUEST))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await upstream.next_exchange()
            group.start_soon(ask)
            await client.get("/health/live")  # the second request has arrived by then
            served.process.send_signal(signal.SIGTERM)
            assert await served.wait() == 0
    assert [problem(response).code for response in responses] == [ErrorCode.SHUTTING_DOWN] * 2
    assert [response.status_code for response in responses] == [503, 503]


@asynccontextmanager
async def starting(said: str, **variables: str) -> AsyncIterator[Process]:
    """Start `parley` as a group of processes; yield when the first line of its output contains `said`."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PARLEY, env=environment(**variables), stdout=pipe, stderr=pipe, start_new_session=True
    )
    assert process.stdout is not None
    try:
        with anyio.fail_after(60):
            assert said.encode() in await process.stdout.readline()
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, "2"), (signal.SIGINT, "1")])
async def test_a_signal_while_it_starts_ends_it_without_a_trace(
    tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    """The signal comes before the model is loaded or a worker serves: there is no error, and no file stays behind."""
    variables = {"PARLEY_HOST": "0.0.0.0", "PARLEY_WORKERS": workers, "TMPDIR": str(tmp_path)}  # noqa: S104
    async with starting("open_to_everybody", **variables) as process:
        process.send_signal(number)
        output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert b'"level":"error"' not in output
    assert os.listdir(tmp_path) == []  # noqa: PTH208  # Ruff forbids pathlib in async functions


@pytest.mark.parametrize("command", [("uv", "run", "parley"), ("uv", "run", "just", "serve")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
async def test_what_the_readme_starts_ends_with_all_its_processes(
    upstream: ScriptedUpstream, command: tuple[str, ...], number: signal.Signals
) -> None:
    """SIGTERM goes to the first process, as from a supervisor; SIGINT goes to all processes, as from Ctrl-C.

    Neither cuts the open stream.
    """
    need("uv", "just")
    variables = environment(**leading_to(upstream), UV_NO_SYNC="1", PARLEY_LOG_FORMAT="json")
    process = await asyncio.create_subprocess_exec(
        *command,
        env=variables,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # just reports that it was interrupted
        start_new_session=True,
    )
    logs = Logs()
    reading = asyncio.create_task(read(process.stdout, logs))
    try:
        url = await address(logs)
        assert len(members(process.pid)) >= len(command) - 1
        gated = upstream.script = Gated()
        async with (
            httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
            httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source,
        ):
            events = source.aiter_sse()
            chunks = [decode_chunk((await anext(events)).data)]
            if number == signal.SIGTERM:
                process.send_signal(number)
            else:
                os.killpg(process.pid, number)
            await logs.line("Shutting down")
            with pytest.raises(TimeoutError):  # uv passes a SIGINT on a moment after the terminal
                await asyncio.wait_for(process.wait(), 0.6)
            gated.may_end.set()
            chunks += [decode_chunk(event.data) async for event in events]
        assert isinstance(chunks[-1], DoneChunk)
        with anyio.fail_after(60):
            await process.wait()
            await reading  # until the last process that could write has ended
        assert members(process.pid) == []
        assert len(logs.lines("stopped")) == 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def members(group: int) -> list[int]:
    """Return the processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(path.parent.name))
    return found


def workers_with(library: str, parent: int) -> int:
    """Count the workers of a process that have loaded this library."""
    workers = [pid for pid, command in arguments(parent).items() if "spawn_main" in " ".join(command)]
    return sum(library in Path(f"/proc/{pid}/maps").read_text() for pid in workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
async def test_a_signal_to_all_while_workers_start_ends_them_without_a_trace(
    upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    """Ctrl-C and systemd send it like this; Parley does not wait for a worker that is gone before it has answered."""
    async with starting("Started parent process", **leading_to(upstream, PARLEY_WORKERS="2")) as process:
        while workers_with("pydantic_core", process.pid) < 2:  # noqa: ASYNC110  # loaded halfway
            await anyio.sleep(0.02)  # a busy loop would slow down their start
        os.killpg(process.pid, number)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


async def test_workers_do_not_outlive_their_parent(upstream: ScriptedUpstream) -> None:
    """Workers end even if the parent could not tell them; otherwise, nothing would ever stop them."""
    async with parley(**leading_to(upstream, PARLEY_WORKERS="2")) as served:
        await served.logs.line("Application startup complete.", number=2)
        pids = [int(number) for number in re.findall(r"Started server process \[(\d+)\]", served.logs.getvalue())]
        assert len(pids) == 2
        maps = anyio.Path(f"/proc/{served.process.pid}/maps")
        assert "/pydantic_core/" not in await maps.read_text(), "the parent has imported what only workers need"
        with watched(pids[0]) as first, watched(pids[1]) as second:
            served.process.kill()
            with anyio.fail_after(60):
                await first.wait()
                await second.wait()


@pytest.mark.long
async def test_a_worker_that_takes_anothers_place_has_its_settings(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A new worker has the settings of the start: with different keys, it would accept the same caller by chance."""
    keys = anyio.Path(tmp_path / "keys")
    await keys.write_text(CANARY_KEY)
    async with parley(**leading_to(upstream, PARLEY_WORKERS="2", PARLEY_API_KEYS_FILE=str(keys))) as served:
        await served.logs.line("Application startup complete.", number=2)
        await keys.write_text("short")
        for pid in re.findall(r"Started server process \[(\d+)\]", served.logs.getvalue()):
            os.kill(int(pid), signal.SIGKILL)
        await served.logs.line("Application startup complete.", number=4)
        async with served.client() as client:
            response = await client.post("/chat", json=REQUEST, headers={"Authorization": f"Bearer {CANARY_KEY}"})
        assert response.status_code == 200


@pytest.mark.long
async def test_a_name_that_is_still_being_looked_up_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The process does not wait for the resolver, which can take minutes."""
    hang = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(120)\n"
    (tmp_path / "sitecustomize.py").write_text(hang)
    variables = {"OPENAI_BASE_URL": "http://upstream.invalid/v1", "PARLEY_MODEL": "x", "PYTHONPATH": str(tmp_path)}
    async with parley(**variables) as served, served.client() as client:
        response = await client.get("/health/ready")
        assert (response.status_code, response.json()["reason"]) == (503, "upstream_unreachable")
        served.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            assert await served.process.wait() == 0
