"""Parley in podman: the images and containers of the recipes, what a container may do, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx_sse
import pytest

from parley.chat.errors import ErrorCode
from parley.testing.upstream import ScriptedUpstream, answer, delta, in_turn
from parley.wire.schema import DoneChunk, ErrorChunk, TextChunk
from tests.support.podman import HARDENED, container, podman, prepare
from tests.support.running import decode_chunk, problem, stream
from tests.support.scripts import call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from parley.testing.exchange import Exchange
    from tests.support.process import Parley

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]  # the tests build images

ROOT = Path(__file__).parents[2]
KEY, OTHER_KEY = "a-key-of-the-test", "another-key-of-the-test"
NAME = "parley-test"
SLIM = "parley-test-slim"
HI = {"message": "Hi"}
# Lists the modules of a start that are not compiled yet.
UNCOMPILED = """
import sys
from importlib.util import cache_from_source
from pathlib import Path
import parley.app, parley.server
files = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
ours = [file for file in files if file.startswith("/opt/") and file.endswith(".py")]
assert len(ours) > 1000, len(ours)
print([file for file in ours if not Path(cache_from_source(file)).exists()])
"""


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    """Build both images as an operator does."""
    prepare()
    for recipe in ("image", "image-slim"):
        subprocess.run(["just", recipe], cwd=ROOT, check=True)  # noqa: S603, S607


@pytest.fixture(scope="module")
async def served(
    _images: None, free_tcp_port_factory: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Parley]:
    """Serve as an operator does, with one key in the environment, and one in a file that only its owner can read."""
    port = free_tcp_port_factory()
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(OTHER_KEY)
    keys.chmod(0o600)
    command = ("just", "--dotenv-path=/dev/null", "podman", "--replace", "--name", NAME)
    variables = {"PARLEY_API_KEYS": KEY, "PARLEY_API_KEYS_FILE": str(keys), "PARLEY_HOST": "localhost"}
    async with container(NAME, port, *command, PARLEY_PORT=str(port), **variables) as served:
        yield served
    assert "parley-PARLEY_API_KEYS" not in await podman("secret", "ls", "--format", "{{.Name}}")


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """Run the scripted upstream at an address that containers can reach."""
    async with ScriptedUpstream(host="0.0.0.0") as upstream:  # noqa: S104
        yield upstream


@asynccontextmanager
async def serving(image: str, upstream: ScriptedUpstream, port: int) -> AsyncIterator[Parley]:
    """Serve from an image without a model, with that upstream and a drain timeout of one second."""
    url = upstream.url.replace("0.0.0.0", "host.containers.internal")  # noqa: S104
    options = (*HARDENED, "--replace", "--name", SLIM, "--publish", f"127.0.0.1:{port}:8000", "--env", "PARLEY_*")
    command = ("podman", "run", "--rm", *options, "--env", "OPENAI_BASE_URL", image)
    variables = {"OPENAI_BASE_URL": url, "PARLEY_MODEL": "scripted-1", "PARLEY_DRAIN_TIMEOUT_S": "1"}
    async with container(SLIM, port, *command, PARLEY_PORT="8000", **variables) as served:
        yield served


@pytest.fixture
async def slim(upstream: ScriptedUpstream, free_tcp_port: int) -> AsyncIterator[Parley]:
    """Serve from the slim image."""
    async with serving("parley:slim", upstream, free_tcp_port) as served:
        yield served


async def test_the_embedded_model_answers_in_a_container_that_may_do_nothing_else(served: Parley) -> None:
    """Callers need a key; the process is not root, has no capability, writes only to /tmp, and gets at most 512 MB."""
    async with served.client() as client:
        assert (await client.post("/chat", json=HI)).status_code == 401
        france = {"message": "What is the capital of France?"}
        chunks = await stream(client, france, headers={"Authorization": f"Bearer {KEY}"})
    assert "Paris" in "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
    status = dict(line.split(":\t") for line in (await podman("exec", NAME, "cat", "/proc/1/status")).splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert {int(status[name], 16) for name in ("CapBnd", "CapEff", "CapPrm")} == {0}
    assert status["NoNewPrivs"] == "1"
    await podman("exec", NAME, "touch", "/opt/code/file", exit_code=1)
    limits = "{{.HostConfig.Memory}} {{.HostConfig.ReadonlyRootfs}} {{.Config.StopTimeout}}"
    assert await podman("inspect", NAME, "--format", limits) == f"{512 * 1024**2} true 45"


async def test_a_callers_key_is_nowhere_but_in_its_secret(served: Parley) -> None:
    """No key is on a command line, which every user can read, or in podman's record of the container."""
    async with served.client() as client:
        for key in (KEY, OTHER_KEY):
            assert (await client.get("/metrics", headers={"Authorization": f"Bearer {key}"})).status_code == 200
    kept = await podman("inspect", NAME)
    assert "PARLEY_API_KEYS_FILE=/parley-keys" in kept
    assert KEY not in kept
    assert OTHER_KEY not in kept


@pytest.mark.parametrize("image", ["parley", "parley:slim"])
async def test_an_image_says_what_it_is(image: str) -> None:
    """The image runs as an unprivileged user, whoever starts it."""
    config = json.loads(await podman("inspect", image, "--format", "{{json .Config}}"))
    assert config["User"] == "10001:10001"
    label = "org.opencontainers.image."
    assert config["Labels"][f"{label}version"] == version("parley")
    assert all(config["Labels"][label + name] for name in ("title", "description", "licenses", "revision", "base.name"))


async def test_a_start_has_nothing_to_compile(served: Parley) -> None:
    """The container could not store what it compiles, and would compile it at each start."""
    assert served.process.returncode is None
    assert await podman("exec", NAME, "python", "-c", UNCOMPILED) == "[]"


async def test_the_image_knows_whether_its_parley_lives(served: Parley) -> None:
    """The check needs no curl, and reports a Parley that hangs as unhealthy."""
    assert served.process.returncode is None
    await podman("healthcheck", "run", NAME)
    await podman("kill", "--signal", "STOP", NAME)
    try:
        assert await podman("healthcheck", "run", NAME, exit_code=1) == "unhealthy"
    finally:
        await podman("kill", "--signal", "CONT", NAME)
    await podman("healthcheck", "run", NAME)


@pytest.mark.parametrize("kind", [DoneChunk, ErrorChunk])
async def test_a_container_that_is_stopped_lets_its_streams_end(
    upstream: ScriptedUpstream, slim: Parley, kind: type[DoneChunk | ErrorChunk]
) -> None:
    """Streams end by themselves or at the drain timeout; then the container, without a parent to tell, exits with 0."""
    is_stopping = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("a"))
        await is_stopping.wait()
        if kind is DoneChunk:
            await exchange.events(delta("b"), delta(finish_reason="stop"), "[DONE]")
            await exchange.end()
        await exchange.gone.wait()

    upstream.script = script
    async with slim.client() as client, httpx_sse.aconnect_sse(client, "POST", "/chat", json=HI) as source:
        events = source.aiter_sse()
        await anext(events)
        stop = asyncio.create_task(podman("stop", SLIM))
        await slim.logs.line("Shutting down")
        is_stopping.set()
        last = [decode_chunk(event.data) async for event in events][-1]
        await stop
    assert isinstance(last, kind)
    if isinstance(last, ErrorChunk):
        assert last.error.code is ErrorCode.SHUTTING_DOWN
    assert await slim.wait() == 0


async def test_the_slim_image_needs_an_upstream() -> None:
    """The error message says so."""
    output = await podman("run", "--rm", *HARDENED, "parley:slim", exit_code=3)
    assert "The embedded model cannot start: its packages are not installed" in output
    assert "or set OPENAI_BASE_URL and PARLEY_MODEL to use another model." in output


async def test_an_agent_answers_from_an_image_with_its_module_on_top(
    upstream: ScriptedUpstream, free_tcp_port: int
) -> None:
    """The image is built and run as the example's README says, and keeps the health check of its base image."""
    image = await podman("build", "--quiet", "--format=docker", str(ROOT / "examples" / "agent"))
    upstream.script = in_turn(call("order_status", '{"number": "A-1001"}'), answer("Tomorrow."))
    async with serving(image, upstream, free_tcp_port) as served, served.client() as client:
        assert (await client.post("/chat/complete", json=HI)).json()["text"] == "Tomorrow."
        await podman("healthcheck", "run", SLIM)
    assert upstream.exchanges[-1].json["messages"][-1]["content"].startswith("Shipped on Monday.")
    await podman("rmi", image)


async def layers(image: str) -> list[str]:
    """Return the layers of an image, from the lowest up."""
    digests: list[str] = json.loads(await podman("inspect", image, "--format", "{{json .RootFS.Layers}}"))
    return digests


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of the files that an image is built from, for tests to change."""
    for name in ("Containerfile", ".containerignore", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for lock in ROOT.glob("requirements*.lock"):
        shutil.copy(lock, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src")
    return tmp_path


async def test_a_package_that_is_not_the_locked_one_is_not_installed(sources: Path) -> None:
    """Its hash does not match."""
    lock = sources / "requirements-build.lock"
    lock.write_text(re.sub(r"sha256:.{8}", "sha256:00000000", lock.read_text()))
    built = await anyio.run_process(["podman", "build", "--target=slim", str(sources)], check=False)
    assert built.returncode == 1
    assert b"DO NOT MATCH THE HASHES" in built.stdout + built.stderr


async def test_an_image_can_be_built_anew_after_a_change_of_a_lock(sources: Path) -> None:
    """All steps before the lock come from the cache of the last build."""
    with (sources / "requirements-embedded.lock").open("a") as lock:
        lock.write("# changed\n")
    await podman("rmi", await podman("build", "--quiet", "--format=docker", "--target=embedded", str(sources)))


async def test_what_is_not_named_as_a_source_is_none(sources: Path) -> None:
    """Such a file does not get into an image, and does not cause a new build of a layer."""
    (sources / "notes").touch()
    built = await podman("build", "--quiet", "--format=docker", "--target=slim", str(sources))
    assert await layers(built) == await layers("parley:slim")


async def test_a_change_of_the_code_moves_one_small_layer(sources: Path) -> None:
    """All layers below stay the same."""
    (sources / "src" / "parley" / "changed.py").touch()
    changed = await podman("build", "--quiet", "--format=docker", "--target=slim", str(sources))
    *below, top = await layers(changed)
    assert below == (await layers("parley:slim"))[:-1]
    assert top != (await layers("parley:slim"))[-1]
    steps = json.loads(await podman("history", "--format", "json", changed))
    assert next(step["size"] for step in steps if step["size"]) < 1_000_000
    await podman("rmi", changed)


async def test_the_manifest_of_kubernetes_runs_in_podman(free_tcp_port: int, tmp_path: Path) -> None:
    """The test runs one pod, with the embedded model and the secret's key; podman publishes another port."""
    manifest = (ROOT / "deploy" / "kubernetes" / "deployment.yaml").read_text()
    manifest = manifest.replace("8000", str(free_tcp_port)).replace(
        "env:\n", f'env:\n            - name: PARLEY_PORT\n              value: "{free_tcp_port}"\n'
    )
    path = tmp_path / "deployment.yaml"
    path.write_text(manifest)
    key = base64.b64encode(KEY.encode()).decode()
    number = await podman("version", "--format", "{{.Client.Version}}")
    publish: tuple[str, ...] = ()
    if tuple(map(int, number.split(".")[:2])) < (4, 4):  # older ones publish every port, and take no Kubernetes secret
        secret = tmp_path / "secret.json"
        secret.write_text(json.dumps({"PARLEY_API_KEYS": key}))
        await podman("secret", "create", "parley", str(secret))
    else:
        publish = (f"--publish=127.0.0.1:{free_tcp_port}:{free_tcp_port}",)
        secret = tmp_path / "secret.yaml"
        kind = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "parley"}}
        secret.write_text(json.dumps({**kind, "data": {"PARLEY_API_KEYS": key}}))
        await podman("kube", "play", str(secret))
    try:
        await podman("kube", "play", *publish, str(path))
        name = await podman("ps", "--format={{.Names}}", "--filter=name=parley-pod.*-parley")
        async with container(name, free_tcp_port, "podman", "logs", "--follow", name) as served:
            async with served.client() as client:
                assert problem(await client.post("/chat", json=HI)).code is ErrorCode.UNAUTHORIZED
                chunks = await stream(client, HI, headers={"Authorization": f"Bearer {KEY}"})
            assert isinstance(chunks[-1], DoneChunk)
            await podman("stop", "--time=60", name)  # `kube down` gives it no time
            await served.logs.line("stopped")
    finally:
        await podman("kube", "down", str(path))
        await podman("secret", "rm", "parley")
