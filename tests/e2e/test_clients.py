"""Clients generated from the contract: each can be generated, is typed, streams, and sends a request only once."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest

from parley.testing.exchange import Exchange
from parley.testing.upstream import ScriptedUpstream, answer, delta, respond
from parley.wire.schema import ErrorResponse
from tests.support import contract
from tests.support.installed import need
from tests.support.npm import install_examples
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx

    from parley.testing.exchange import Script
    from tests.support.logs import Logs

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
HOMES = "tests/clients", "examples"
TSC, NODE = "tsc", "node program.js"
MYPY, PYTHON = "mypy --strict --follow-imports=silent program.py", f"{sys.executable} program.py"
WITHOUT_MEANING = (
    "OpenAPI 3.1 support is still in beta",  # OpenAPI Generator prints this for every OpenAPI 3.1 document
    "Failed to get the schema name: null",  # OpenAPI Generator prints this for Python clients, whatever the document
)


@dataclass(frozen=True)
class Generator:
    """How to generate a client, check the types of its program, and run the program."""

    name: str
    generate: str
    check: str
    run: str
    needs: tuple[str, ...]
    home: str = "workshop"
    """The fixture that provides the folder with the program's own folder."""

    @property
    def program(self) -> Path:
        """The program that uses the client, in this repository."""
        (program,) = (path for home in HOMES for path in (ROOT / home / self.name).glob("program.[tp][sy]"))
        return program


GENERATORS = (
    Generator(
        "hey-api",
        "openapi-ts -i ../chat-api.yaml -o generated -c @hey-api/client-fetch",
        TSC,
        NODE,
        ("npm",),
        "npm_installed",
    ),
    Generator(
        "openapi-fetch",
        "openapi-typescript ../chat-api.yaml -o generated.ts",
        TSC,
        NODE,
        ("npm",),
        "npm_installed",
    ),
    Generator(
        "orval",
        "orval --input ../chat-api.yaml --output generated.ts --client fetch",
        TSC,
        NODE,
        ("npm",),
        "orval_installed",
    ),
    Generator(
        "typescript-fetch",
        "openapi-generator-cli generate -g typescript-fetch -i ../chat-api.yaml -o generated"
        " --additional-properties=importFileExtension=.js",
        TSC,
        NODE,
        ("npm", "java", "openapi-generator-cli"),
        "npm_installed",
    ),
    Generator(
        "openapi-python-client",
        "openapi-python-client generate --path ../chat-api.yaml --meta none --output-path parley_client",
        MYPY,
        PYTHON,
        ("openapi-python-client",),
    ),
    Generator(
        "openapi-generator-python",
        "openapi-generator-cli generate -g python -i ../chat-api.yaml -o ."
        " --additional-properties=packageName=parley_client,generateSourceCodeOnly=true",
        MYPY,
        PYTHON,
        ("java", "openapi-generator-cli"),
    ),
)


@dataclass
class Client:
    """A generated client, in a folder beside the program that uses it."""

    generator: Generator
    folder: Path
    complaints: list[str] = field(init=False)
    """The generator's warnings."""
    checked: subprocess.CompletedProcess[str] = field(init=False)
    """What the compiler or mypy reported for the program."""

    def __post_init__(self) -> None:
        said = self.finish(self.generator.generate)
        assert said.returncode == 0, said.stdout
        self.checked = self.finish(self.generator.check)
        complaints = re.findall(r"(?i).*\b(?:warn(?:ing)?s?|errors?)\b.*", said.stdout)
        self.complaints = [line for line in complaints if not any(known in line for known in WITHOUT_MEANING)]

    def finish(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the client's folder until it ends."""
        return subprocess.run(  # noqa: S603  # the command is one of this file
            command.split(),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    @asynccontextmanager
    async def asking(self, url: str) -> AsyncIterator[Process]:
        """Run the client's program; it has ended by the end of the block."""
        assert self.checked.returncode == 0, self.checked.stdout
        pipe = asyncio.subprocess.PIPE
        command = (*self.generator.run.split(), url, "Hi")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe
        )
        try:
            with anyio.fail_after(60):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def ask(self, url: str) -> tuple[int | None, str, str]:
        """Run the client's program until it ends; return exit code, output and errors."""
        async with self.asking(url) as process:
            output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode()

    @property
    def program(self) -> Path:
        """The program that uses the client."""
        return next(self.folder.glob("program.[tp][sy]"))

    @property
    def environment(self) -> dict[str, str]:
        """The environment, with npm's commands on the path, and without a proxy."""
        programs = [str(folder / "node_modules" / ".bin") for folder in (self.folder, self.folder.parent)]
        path = os.pathsep.join([*programs, os.environ["PATH"]])
        return {**os.environ, "PATH": path, "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the programs and the contract to a folder where clients can be generated beside them."""
    folder = tmp_path_factory.mktemp("workshop") / "clients"
    shutil.copytree(ROOT / "tests" / "clients", folder)
    shutil.copy(ROOT / "contracts" / "chat-api.yaml", folder)
    return folder


@pytest.fixture(scope="session")
def npm_installed(workshop: Path) -> Path:
    """Install what the TypeScript programs need."""
    subprocess.run(["npm", "ci"], cwd=workshop, check=True)  # noqa: S607  # the installed npm
    return workshop


@pytest.fixture(scope="session")
def orval_installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what the example with orval needs."""
    return install_examples(tmp_path_factory.mktemp("repository"), "orval")


@pytest.fixture(scope="session")
def all_generated() -> dict[str, Client]:
    """Keep each client for all of its tests, in any order of the tests."""
    return {}


@pytest.fixture(params=GENERATORS, ids=lambda generator: generator.name)
def generated(request: pytest.FixtureRequest, all_generated: dict[str, Client]) -> Client:
    """Generate a client, unless it has been generated already."""
    generator: Generator = request.param
    need(*generator.needs)
    if generator.name not in all_generated:
        home: Path = request.getfixturevalue(generator.home)
        all_generated[generator.name] = Client(generator, home / generator.name)
    return all_generated[generator.name]


@pytest.fixture
def proves(generated: Client, record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that tells the summary what the test proves about the client if it passes."""
    return lambda word: record_property(f"client {generated.generator.name}", word)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.name)
def test_the_how_to_tells_how_to_generate_a_client(generator: Generator) -> None:
    """The page shows the same command and the same program that these tests run."""
    command = generator.generate.replace("../", "")
    program = generator.program.relative_to(ROOT)
    row = f"| [{generator.name}](../{program}) | `{command}` |"
    assert row in (ROOT / "contracts" / "README.md").read_text(), f"the table should have:\n{row}"
    if (readme := generator.program.with_name("README.md")).exists():
        assert command.replace("chat-api.yaml", "http://localhost:8000/schema/openapi.json") in readme.read_text()


def test_a_linter_has_nothing_to_say_of_the_contract(workshop: Path, request: pytest.FixtureRequest) -> None:
    """The linter uses Redocly's strict rules, except one; see tests/clients/redocly.yaml."""
    need("npm")
    request.getfixturevalue("npm_installed")
    linted = subprocess.run(  # noqa: S603  # the pinned linter
        [workshop / "node_modules" / ".bin" / "redocly", "lint", "chat-api.yaml"],
        cwd=workshop,
        env={**os.environ, "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_message_is_blank_in_every_language_or_in_none() -> None:
    """The contract's pattern rejects a single character that Python or JavaScript treats as whitespace, and NUL."""
    need("node")
    pattern = contract.read()["components"]["schemas"]["ChatRequest"]["properties"]["message"]["pattern"]
    script = """
        const matching = (pattern) => [...Array(0x10000).keys()].filter(
            (code) => new RegExp(pattern, 'u').test(String.fromCharCode(code)));
        console.log(JSON.stringify(process.argv.slice(1).map(matching)));
    """
    printed = subprocess.check_output(["node", "-e", script, pattern, r"\s"])  # noqa: S603, S607  # the installed node
    taken, blank = (set(codes) for codes in msgspec.json.decode(printed, type=list[list[int]]))
    assert taken == {code for code in range(0x10000) if re.search(pattern, chr(code))}
    assert taken == set(range(0x10000)) - {0} - blank - {code for code in range(0x10000) if chr(code).isspace()}


def test_a_client_is_generated_without_a_warning(generated: Client, proves: Callable[[str], None]) -> None:
    """Warnings that come with every document do not count."""
    proves("generated")
    assert generated.complaints == []


def test_a_program_is_checked_against_the_contracts_types(generated: Client, proves: Callable[[str], None]) -> None:
    """The strict check rejects a program that omits a kind of chunk, or reads a field that an error does not have."""
    proves("typed")
    assert generated.checked.returncode == 0, generated.checked.stdout
    program = generated.program.read_text()
    wrong = program.replace("case 'error'", "case 'done'").replace("ErrorChunk()", "DoneChunk()")
    generated.program.write_text(wrong.replace("detail", "details"))
    refused = generated.finish(generated.generator.check)
    generated.program.write_text(program)
    assert refused.returncode != 0
    assert re.search(r"(?i)\bnever\b", refused.stdout)
    assert re.search(r"\bdetails\b", refused.stdout)


async def test_a_program_prints_the_first_text_before_the_last_is_made(
    generated: Client, upstream: ScriptedUpstream, client: httpx.AsyncClient, proves: Callable[[str], None]
) -> None:
    """The model sends the last text when the first has been read; it contains a line end that only JavaScript knows."""
    proves("streamed")
    gated = upstream.script = Gated(last=", \u2028last")
    async with generated.asking(str(client.base_url)) as program:
        assert program.stdout is not None
        assert await program.stdout.readexactly(5) == b"first"
        gated.may_end.set()
        output, errors = await program.communicate()
    assert (program.returncode, output.decode()) == (0, ", \u2028last"), errors
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (400, "context_length_exceeded", "context_length_exceeded"),
        (401, "invalid_api_key", "upstream_auth"),
        (429, "rate_limit_exceeded", "upstream_rate_limited"),
    ],
    ids=["400", "502", "503"],
)
async def test_a_program_tells_an_errors_code_and_whom_to_quote(
    generated: Client,
    upstream: ScriptedUpstream,
    client: httpx.AsyncClient,
    logs: Logs,
    status: int,
    reason: str,
    code: str,
    proves: Callable[[str], None],
) -> None:
    """The program sends one request, even if Parley says that it may retry."""
    proves("errors typed")
    upstream.script = respond(status, {"error": {"message": "No.", "code": reason}}, retry_after="1")
    exit_code, output, errors = await generated.ask(str(client.base_url))
    line = await logs.line()
    assert (exit_code, output) == (1, "")
    assert re.fullmatch(rf"{code}: .+ \[{line['correlation_id']}\]\n", errors)
    assert len(upstream.exchanges) == 1


async def test_a_program_tells_that_the_answer_broke_off(
    generated: Client, upstream: ScriptedUpstream, client: httpx.AsyncClient, logs: Logs, proves: Callable[[str], None]
) -> None:
    """The program prints the error after the text that has arrived, and does not ask again."""
    proves("error chunk typed")

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("first"))
        exchange.close()

    upstream.script = script
    exit_code, output, errors = await generated.ask(str(client.base_url))
    line = await logs.line()
    assert (exit_code, output) == (1, "first")
    assert re.search(rf"^upstream_truncated: .+ \[{line['correlation_id']}\]$", errors, re.MULTILINE)
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_program_tells_why_an_answer_is_not_whole_that_has_an_end(
    generated: Client,
    upstream: ScriptedUpstream,
    client: httpx.AsyncClient,
    logs: Logs,
    reason: str,
    proves: Callable[[str], None],
) -> None:
    """The program reports the reason by exit code and on standard error, with the correlation id, and asks once."""
    proves("reasons told")
    upstream.script = answer("first", finish_reason=reason)
    exit_code, output, errors = await generated.ask(str(client.base_url))
    line = await logs.line()
    assert (exit_code, output) == (1, "first")
    assert f"The answer is incomplete: {reason}." in errors
    assert f"{line['correlation_id']}]" in errors
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("end", [Exchange.end, Exchange.close, Exchange.abort], ids=lambda end: end.__name__)
async def test_a_program_does_not_take_a_part_for_the_whole(
    generated: Client,
    upstream: ScriptedUpstream,
    end: Callable[[Exchange], Awaitable[None] | None],
    proves: Callable[[str], None],
) -> None:
    """The connection to Parley ends without `done` or `error`; the program does not ask again."""
    proves("asks once")

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(b'event: start\ndata: {"type":"start","seq":0,"correlation_id":"c","model":"m"}\n\n')
        await exchange.write(b'event: text\ndata: {"type":"text","seq":1,"text":"first"}\n\n')
        if ending := end(exchange):
            await ending

    upstream.script = script
    exit_code, output, _ = await generated.ask(upstream.url.removesuffix("/v1"))
    assert (exit_code, output) == (1, "first")
    assert [exchange.path for exchange in upstream.exchanges] == ["/chat"]


FUTURE = {
    "code": "code_of_the_future",
    "error": "Something new happened.",
    "detail": "A later version knows why.",
    "action": "Retry.",
    "correlation_id": "c-1",
    "retryable": True,
    "retry_after_s": None,
    "field_of_the_future": {"more": 1},
}


async def fails_in_mid_stream(exchange: Exchange) -> None:
    """Answer as a later version of Parley whose upstream fails after the first text."""
    usage = {"input_tokens": None, "output_tokens": None, "total_tokens": None, "source": "none"}
    chunks: list[dict[str, object]] = [
        {"type": "start", "seq": 0, "correlation_id": "c-1", "model": "m", "field_of_the_future": []},
        {"type": "text", "seq": 1, "text": "first"},
        {"type": "error", "seq": 2, "error": FUTURE, "usage": usage},
    ]
    await exchange.head()
    for chunk in chunks:
        await exchange.write(f"event: {chunk['type']}\ndata: {json.dumps(chunk)}\n\n".encode())
    await exchange.end()


@pytest.mark.parametrize(
    ("script", "text"), [(fails_in_mid_stream, "first"), (respond(418, FUTURE), "")], ids=["chunk", "http"]
)
async def test_a_program_tells_an_error_whose_code_only_a_later_version_knows(
    generated: Client, upstream: ScriptedUpstream, script: Script, text: str, proves: Callable[[str], None]
) -> None:
    """The code, and more fields than the contract has, do not keep the client from decoding the error."""
    proves("later codes told")
    upstream.script = script
    exit_code, output, errors = await generated.ask(upstream.url.removesuffix("/v1"))
    assert (exit_code, output) == (1, text)
    assert re.search(r"^code_of_the_future: A later version knows why\. \[c-1\]$", errors, re.MULTILINE), errors


async def test_a_program_that_is_stopped_stops_the_model(
    generated: Client, upstream: ScriptedUpstream, client: httpx.AsyncClient, proves: Callable[[str], None]
) -> None:
    """The program is stopped by Ctrl-C in mid-stream."""
    proves("stopped")

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("first"))
        await exchange.gone.wait()

    upstream.script = script
    async with generated.asking(str(client.base_url)) as program:
        assert program.stdout is not None
        assert await program.stdout.readexactly(5) == b"first"
        program.send_signal(signal.SIGINT)
        await upstream.exchanges[0].gone.wait()
        _, errors = await program.communicate()
    assert program.returncode == 130, errors
    assert len(upstream.exchanges) == 1


async def test_curl_shows_what_came_before_the_last_is_made(
    workshop: Path, upstream: ScriptedUpstream, client: httpx.AsyncClient
) -> None:
    """The program sends one request."""
    gated = upstream.script = Gated()
    async with curl(workshop, str(client.base_url)) as program:
        assert program.stdout is not None
        with anyio.fail_after(60):
            assert b"event: text" in await program.stdout.readuntil(b"event: text")
            gated.may_end.set()
            output, _ = await program.communicate()
    assert b"event: done" in output
    assert (program.returncode, len(upstream.exchanges)) == (0, 1)


async def test_curl_tells_an_error_by_its_body_and_its_exit_code(
    workshop: Path, upstream: ScriptedUpstream, client: httpx.AsyncClient
) -> None:
    """The program sends one request."""
    upstream.script = respond(429, {}, retry_after="1")
    async with curl(workshop, str(client.base_url)) as program:
        output, _ = await program.communicate()
    assert msgspec.json.decode(output, type=ErrorResponse).code == "upstream_rate_limited"
    assert (program.returncode, len(upstream.exchanges)) == (22, 1)


@asynccontextmanager
async def curl(workshop: Path, url: str) -> AsyncIterator[Process]:
    """Run curl's program; it has ended by the end of the block."""
    need("curl")
    pipe = asyncio.subprocess.PIPE
    program = workshop / "curl" / "program.sh"
    process = await asyncio.create_subprocess_exec(program, url, '{"message":"Hi"}', stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("program", ["curl", "hey-api", "openapi-python-client", "browser"])
def test_the_how_to_shows_the_programs_that_are_run(program: str) -> None:
    """The page has each program verbatim."""
    (path,) = (ROOT / "tests" / "clients" / program).glob("program.*")
    assert path.read_text().rstrip() in (ROOT / "contracts" / "README.md").read_text()
