"""Containers for the tests: the base image of the builds, and a Parley that serves from a container."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from tests.support.installed import lack, need
from tests.support.logs import Logs
from tests.support.process import Parley, address, environment, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BASE = "docker.io/library/python:3.11-slim-bookworm"
HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--memory=512m")


def succeeds(*command: str) -> bool:
    """Run a command, ignore its output, and return whether it succeeded."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def prepare() -> None:
    """Get the base image, or a stand-in if no registry can be reached; skip the test if podman cannot run."""
    need("podman", "just")
    if not succeeds("podman", "image", "exists", BASE) and not succeeds("podman", "pull", BASE):
        need("mmdebstrap")
        with tempfile.TemporaryDirectory() as folder:
            root = str(Path(folder) / "root.tar")
            packages = "--include=python3,python3-venv,ca-certificates"
            made = succeeds("mmdebstrap", "--quiet", "--variant=apt", packages, "bookworm", root)
            if not (made and succeeds("podman", "import", "--message", "a stand-in for tests", root, BASE)):
                lack(f"{BASE} can neither be pulled, nor made by mmdebstrap")
    trial = subprocess.run(["podman", "run", "--rm", BASE, "true"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if trial.returncode != 0:
        lack(f"podman cannot run a container: {trial.stderr}")


async def podman(*arguments: str, exit_code: int = 0) -> str:
    """Run podman, which must end with this exit code, and return its output."""
    with anyio.fail_after(300):  # it may build an image
        process = await anyio.run_process(["podman", *arguments], check=False, stderr=None)
    assert process.returncode == exit_code
    return process.stdout.decode().strip()


@asynccontextmanager
async def container(name: str, port: int, *command: str, **variables: str) -> AsyncIterator[Parley]:
    """Run a command that serves from a container with this name and port; stop the container unless it has ended."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(**variables), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    served = Parley(process, Logs())
    reader = asyncio.create_task(read(process.stdout, served.logs))
    try:
        await address(served.logs)  # the log has the address inside the container
        served.url = f"http://127.0.0.1:{port}"
        yield served
    finally:
        if process.returncode is None:
            await podman("stop", "--ignore", name)
        await served.wait()
        await reader
