"""`parley chat`: the terminal client, used with a running Parley."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import pexpect
import pytest

from parley.testing.upstream import answer, delta, hang, in_turn, respond
from tests.support.canaries import CANARY_KEY
from tests.support.process import PARLEY, environment
from tests.support.running import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange
    from parley.testing.upstream import ScriptedUpstream


@pytest.fixture
def url(client: httpx.AsyncClient) -> str:
    """Return the address of a Parley with the scripted upstream."""
    return str(client.base_url)


async def chat(
    *arguments: str | bytes, given: str | bytes | None = None, **variables: str
) -> tuple[int | None, str, str]:
    """Run `parley chat` with this standard input; return exit code, output and errors."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *PARLEY, "chat", *arguments, env=environment(**variables), stdin=pipe, stdout=pipe, stderr=pipe
    )
    with anyio.fail_after(60):
        output, errors = await process.communicate(given.encode() if isinstance(given, str) else given)
    return process.returncode, output.decode(), errors.decode()


async def test_a_message_as_an_argument_is_answered(url: str, upstream: ScriptedUpstream) -> None:
    """Standard output has only the answer; tokens and time go to standard error."""
    code, output, errors = await chat("--url", url, "Say", "hello")
    assert (code, output) == (0, "Hello\n")
    assert errors.startswith("[3 tokens, ")
    assert upstream.exchanges[0].json["messages"] == [{"role": "user", "content": "Say hello"}]


async def test_a_message_from_a_pipe_is_answered(url: str, upstream: ScriptedUpstream) -> None:
    """The line end that `echo` adds is removed."""
    code, output, _ = await chat("--url", url, given="Say\nhello\n")
    assert (code, output) == (0, "Hello\n")
    assert upstream.exchanges[0].json["messages"] == [{"role": "user", "content": "Say\nhello"}]


async def test_what_is_not_utf8_is_replaced(url: str, upstream: ScriptedUpstream) -> None:
    """Invalid bytes in an argument or a pipe are replaced; a character that cannot be shown becomes a question mark."""
    await chat("--url", url, b"caf\xe9")
    await chat("--url", url, given=b"caf\xe9")
    assert [exchange.json["messages"][0]["content"] for exchange in upstream.exchanges] == ["caf\ufffd"] * 2
    upstream.script = answer("caf\xe9")
    assert (await chat("--url", url, "Hi", PYTHONIOENCODING="ascii"))[:2] == (0, "caf?\n")


async def test_a_reader_that_has_had_enough_stops_the_answer(url: str, upstream: ScriptedUpstream) -> None:
    """As in `parley chat | head`: there is no traceback, and the model stops."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        while not exchange.gone.is_set():
            await exchange.events(delta("word "))

    upstream.script = script
    command = f'"$0" -m parley chat --url {url} Hi | head -c 9'
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        command,
        PARLEY[0],
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with anyio.fail_after(60):
        assert await process.communicate() == (b"word word", b"")
        await upstream.exchanges[0].gone.wait()


async def test_the_address_is_that_of_the_settings(client: httpx.AsyncClient) -> None:
    """Client and server read the same variables; the server's other variables and a proxy do not matter here."""
    variables = {
        "PARLEY_PORT": str(client.base_url.port),
        "OPENAI_API_KEY": "no model beside it",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "",
    }
    code, output, _ = await chat("Hi", **variables)
    assert (code, output) == (0, "Hello\n")


async def test_a_key_in_the_file_of_settings_is_sent_to_no_address_that_is_given(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address may be that of another Parley, or of anything else."""
    (tmp_path / ".env").write_text(f"PARLEY_API_KEYS={CANARY_KEY}\n")
    monkeypatch.chdir(tmp_path)
    upstream.script = respond(500, {})
    await chat("--url", upstream.url, "Hi", PYTHON_DOTENV_DISABLED="")
    assert "authorization" not in upstream.exchanges[0].headers


async def test_an_answer_cut_short_says_why(url: str, upstream: ScriptedUpstream) -> None:
    """An answer that reached its maximum length is not a failure."""
    upstream.script = answer("cut", finish_reason="length")
    code, _, errors = await chat("--url", url, "Hi")
    assert code == 0
    assert errors.endswith("ended by length]\n")


async def test_a_failure_is_told_in_three_sentences(url: str, upstream: ScriptedUpstream) -> None:
    """The error includes the code and the correlation id, before the first text and after it."""
    upstream.script = respond(401, {})
    code, output, errors = await chat("--url", url, "Hi")
    assert (code, output) == (1, "")
    assert errors.startswith(
        "The upstream refused the request. The upstream rejected Parley's credentials. Tell the operator"
    )
    assert "[upstream_auth, " in errors

    upstream.script = answer("half", finish_reason=None)
    code, output, errors = await chat("--url", url, "Hi")
    assert (code, output) == (1, "half")
    assert "The answer is incomplete." in errors


async def test_a_server_that_is_not_there_is_told() -> None:
    """The error names the command that starts a server."""
    code, output, errors = await chat("Hi", PARLEY_PORT="9")
    assert (code, output) == (1, "")
    assert errors == "Nothing answers at http://127.0.0.1:9. Start Parley there: `uv run parley`.\n"


async def test_another_server_is_told(upstream: ScriptedUpstream) -> None:
    """The response does not matter."""
    upstream.script = respond(200, {"object": "list"})
    code, output, errors = await chat("--url", upstream.url, "Hi")
    assert (code, output) == (1, "")
    assert "is no Parley, or it broke off." in errors


async def test_control_characters_do_not_reach_the_terminal(url: str, upstream: ScriptedUpstream) -> None:
    """An attacker could make a model print control sequences."""
    upstream.script = answer("a\x1b[2Jb\x07\tc\n東")
    _, output, _ = await chat("--url", url, "Hi")
    assert output == "a[2Jb\tc\n東\n"


class Terminal:
    """A `parley chat` in a pseudo-terminal."""

    def __init__(self, url: str) -> None:
        command, *arguments = PARLEY
        env: Any = environment(TERM="dumb")
        self.process = pexpect.spawn(
            command, [*arguments, "chat", "--url", url], env=env, encoding="utf-8", echo=False, timeout=60
        )

    async def expect(self, text: str) -> None:
        """Wait until the program has printed this text."""
        await anyio.to_thread.run_sync(self.process.expect_exact, text)  # pexpect's own async leaves a pipe open

    def type(self, line: str) -> None:
        """Type a line."""
        self.process.sendline(line)


@pytest.fixture
async def terminal(make_settings: Callable[..., Settings]) -> AsyncIterator[Terminal]:
    """Run a conversation with a Parley that uses the scripted upstream."""
    async with running(make_settings()) as client:
        terminal = Terminal(str(client.base_url))
        await terminal.expect("> ")
        yield terminal
        terminal.process.close(force=True)


async def test_a_conversation_keeps_its_turns(terminal: Terminal, upstream: ScriptedUpstream) -> None:
    """The server stores none of them; Ctrl-D ends the program."""
    terminal.type("One")
    await terminal.expect("Hello")
    await terminal.expect("[3 tokens")
    await terminal.expect("> ")
    terminal.type("Two")
    await terminal.expect("Hello")
    await terminal.expect("> ")
    terminal.process.sendeof()
    await anyio.to_thread.run_sync(terminal.process.expect, pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 0
    assert upstream.exchanges[1].json["messages"] == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Two"},
    ]


async def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal, upstream: ScriptedUpstream) -> None:
    """Ctrl-C works in mid-answer, before the first text, and at the prompt; the model stops too."""

    async def endless(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("begun"))
        await exchange.gone.wait()

    upstream.script = endless
    terminal.type("One")
    await terminal.expect("begun")
    terminal.process.sendintr()
    await terminal.expect("[stopped]")
    await terminal.expect("> ")
    with anyio.fail_after(60):
        await upstream.exchanges[0].gone.wait()

    upstream.script = hang
    upstream.received.clear()
    terminal.type("Two")
    await upstream.next_exchange()
    terminal.process.sendintr()
    await terminal.expect("[stopped]")
    await terminal.expect("> ")
    terminal.process.sendintr()
    await terminal.expect("> ")

    upstream.script = answer("Hello")
    terminal.type("Three")
    await terminal.expect("Hello")
    assert upstream.exchanges[-1].json["messages"] == [{"role": "user", "content": "Three"}]


async def test_a_conversation_too_long_goes_on_without_its_older_half(
    terminal: Terminal, upstream: ScriptedUpstream
) -> None:
    """Otherwise, the model would refuse the conversation forever."""
    too_long = respond(400, {"error": {"code": "context_length_exceeded"}})
    upstream.script = in_turn(answer("A"), answer("B"), answer("C"), too_long, answer("D"))
    for number in range(3):
        terminal.type(str(number))
        await terminal.expect("> ")
    terminal.type("3")
    await terminal.expect("The older half of the conversation is forgotten.")
    await terminal.expect("> ")
    terminal.type("4")
    await terminal.expect("D")
    assert [turn["content"] for turn in upstream.exchanges[-1].json["messages"]] == ["2", "C", "4"]
