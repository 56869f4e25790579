"""The test kit, installed without the server into the environment of another project, as docs/testing.md says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.installed import need

ROOT: Final = Path(__file__).parents[2]
MOST_PACKAGES: Final = 12
MOST_MB: Final = 18


class Project:
    """Another project, with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
        self._pins = folder / "pins.txt"
        self._pins.write_text("\n".join(pins))
        self.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT))
        (self.wheel,) = folder.glob("parley-*.whl")
        self.run("uv", "venv", "--quiet", "--python", sys.executable, "venv")
        self.install(f"{self.wheel}[testing]")
        listed = self.run("uv", "pip", "list", "--quiet", "--python", str(self.python), "--format", "json")
        self.packages = {package["name"] for package in json.loads(listed)}
        """The packages that the kit brought; the tests install others later."""
        (folder,) = self.python.parents[1].glob("lib/*/site-packages")
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
        self.packages_bytes = sum(path.stat().st_size for path in files)

    def install(self, *packages: str) -> None:
        """Install packages, in the versions that Parley's own tests use."""
        self.run("uv", "pip", "install", "--quiet", "--python", str(self.python), "-c", str(self._pins), *packages)

    def run(self, *command: str) -> str:
        """Run a command in the project's folder, and return its output; fail the test if the command fails."""
        ended = self.end(*command)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def end(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder until it ends."""
        return subprocess.run(  # noqa: S603  # the commands are in this file
            command,
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Install the kit."""
    need("uv")
    return Project(tmp_path_factory.mktemp("project"))


def test_the_kit_is_small(project: Project) -> None:
    """The environment has few packages, none of them the server's, and they are small without their bytecode."""
    assert {"parley", "polyfactory", "pytest"} <= project.packages
    assert len(project.packages) <= MOST_PACKAGES, project.packages
    assert project.packages_bytes < MOST_MB * 1_000_000


def test_a_monorepo_tests_its_client_as_the_page_shows(project: Project) -> None:
    """The examples pass with pytest and `mypy --strict`; only the service has a conftest.py, and it is empty."""
    need("curl")
    project.install("httpx", "httpx-sse")
    page = (ROOT / "docs" / "testing.md").read_text()
    reader, in_memory, on_a_socket = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    repository = project.folder / "repository"
    service = repository / "services" / "a"
    (service / "tests").mkdir(parents=True)
    (service / "reader.py").write_text(reader)
    (service / "tests" / "conftest.py").write_text("")
    (service / "tests" / "test_reader.py").write_text(in_memory)
    (service / "tests" / "test_program.py").write_text(on_a_socket)
    pytest_ = (str(project.python), "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "5 passed" in project.run(*pytest_, "-o", f"pythonpath={service}", str(repository))
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", str(project.python))
    project.run("env", f"MYPYPATH={service}", *mypy, "--cache-dir", os.devnull, str(service))


def test_the_fake_runs_as_a_program_for_other_test_runners(project: Project) -> None:
    """The page's program, on any free port."""
    page = (ROOT / "docs" / "testing.md").read_text()
    program = re.findall(r"```py\n(.*?)```", page, re.DOTALL)[0]
    (project.folder / "fake.py").write_text(program.replace("8000", "0"))
    command = [str(project.python), "fake.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project.folder) as fake:  # noqa: S603
        assert fake.stdout is not None
        try:
            (url,) = re.findall(r"http://[\d.:]+\d", fake.stdout.readline())
            response = httpx.post(f"{url}/chat", json={"message": "Hi"}, trust_env=False)
        finally:
            fake.terminate()
    assert response.text.count("event: text") == 2


def test_the_command_without_the_server_says_what_to_install(project: Project) -> None:
    """It exits with 2, as for a wrong setting."""
    ended = project.end(str(project.python.with_name("parley")))
    assert ended.returncode == 2
    assert "parley[server]" in ended.stdout


def test_the_faulty_upstream_says_what_it_cannot_do(project: Project) -> None:
    """A port that is taken, or is none, is an error of one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = project.end(str(project.python.with_name("parley")), "faulty", "--port", str(port))
    assert (ended.returncode, ended.stdout.count("\n")) == (2, 1)
    assert str(port) in ended.stdout
    assert project.end(str(project.python.with_name("parley")), "faulty", "--port", "99999").returncode == 2


def test_the_faulty_upstream_needs_no_server(project: Project) -> None:
    """`parley faulty` names its address and its faults, and shows the one that a message names."""
    command = [str(project.python.with_name("parley")), "faulty", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project.folder) as upstream:  # noqa: S603
        assert upstream.stdout is not None
        try:
            url = re.findall(r"http://\S+/v1", upstream.stdout.readline())[0]
            assert "stall_with_pings" in upstream.stdout.readline()
            asked = {"messages": [{"role": "user", "content": "Show me 429_retry_after"}]}
            response = httpx.post(f"{url}/chat/completions", json=asked, trust_env=False)
            odd = [httpx.post(f"{url}/{path}", json=[], trust_env=False) for path in ("chat/completions", "nothing")]
        finally:
            upstream.terminate()
    assert [one.status_code for one in odd] == [400, 404]
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
