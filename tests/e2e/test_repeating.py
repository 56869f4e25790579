"""Clients that might send a request again: with the documented settings, one question is one POST."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import anyio
import pytest

from parley.testing.upstream import ScriptedUpstream, answer, respond
from tests.support.installed import need
from tests.support.npm import documented, install
from tests.support.running import running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from parley.settings import Settings
    from parley.testing.exchange import Exchange
    from tests.support.logs import Logs

pytestmark = pytest.mark.long

CLIENTS = {
    "eventsource": ("node", "program.js"),
    "httpx": (sys.executable, "program.py"),
    "requests": (sys.executable, "program.py"),
    "wget": ("sh", "program.sh"),
    "curl": ("sh", "program.sh"),
}
TEXT = b'event: text\ndata: {"type":"text","seq":1,"text":"first"}\n\n'


class Ended(NamedTuple):
    """How a program ended."""

    code: int | None
    output: str
    errors: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the clients, and put their programs beside them."""
    need("node", "wget", "curl")
    folder = tmp_path_factory.mktemp("node")
    install(folder)
    for client, (_, program) in CLIENTS.items():
        place = folder / client
        place.mkdir()
        (place / program).write_text(documented("clients.md", client))
    return folder


async def ask(folder: Path, url: str, *clients: str) -> dict[str, Ended]:
    """Run the programs at the same time, each with its own name as the message; return how each ended."""
    ended: dict[str, Ended] = {}

    async def run(client: str) -> None:
        with anyio.fail_after(60):
            done = await anyio.run_process([*CLIENTS[client], url, client], cwd=folder / client, check=False)
        ended[client] = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    async with anyio.create_task_group() as group:
        for client in clients:
            group.start_soon(run, client)
    return ended


async def test_an_answer_is_asked_for_once(
    folder: Path, upstream: ScriptedUpstream, make_settings: Callable[..., Settings], logs: Logs
) -> None:
    """One of the clients takes the end of a stream for a lost connection."""
    upstream.script = answer("first, ", "\u2028last")
    async with running(make_settings(), logs) as client:
        ended = await ask(folder, str(client.base_url).rstrip("/"), *CLIENTS)
    assert {name: end.code for name, end in ended.items()} == dict.fromkeys(CLIENTS, 0), ended
    raw = {"wget", "curl"}
    shown = {name: end.output for name, end in ended.items() if name not in raw}
    assert shown == dict.fromkeys(CLIENTS.keys() - raw, "first, \u2028last")
    assert all("event: done" in ended[name].output for name in raw)
    assert Counter(exchange.message for exchange in upstream.exchanges) == dict.fromkeys(CLIENTS, 1)


async def test_a_refusal_is_not_answered_with_another_request(
    folder: Path, upstream: ScriptedUpstream, make_settings: Callable[..., Settings], logs: Logs
) -> None:
    """The status 503 says that another request may succeed."""
    upstream.script = respond(429, {})
    async with running(make_settings(), logs) as client:
        ended = await ask(folder, str(client.base_url).rstrip("/"), *CLIENTS)
    assert [name for name, end in ended.items() if end.code == 0] == []
    assert Counter(exchange.message for exchange in upstream.exchanges) == dict.fromkeys(CLIENTS, 1)
    assert [line["status"] for line in logs.lines("request")] == [503] * len(CLIENTS)


async def test_a_connection_that_breaks_is_not_followed_by_another(folder: Path) -> None:
    """The upstream stands in for a Parley that is killed in mid-stream."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(TEXT)
        exchange.abort()

    async with ScriptedUpstream() as killed:
        killed.script = script
        ended = await ask(folder, killed.url.removesuffix("/v1"), *CLIENTS)
    assert [name for name, end in ended.items() if end.code == 0] == []
    assert Counter(exchange.json["message"] for exchange in killed.exchanges) == dict.fromkeys(CLIENTS, 1)


async def test_a_connection_that_is_dead_is_given_up(folder: Path) -> None:
    """The clients give up after three heartbeat intervals, in real time, as the programs' clocks cannot be changed."""
    clients = CLIENTS.keys() - {"eventsource"}  # it has no setting for this
    now = asyncio.get_running_loop().time

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.write(TEXT)
        begun = now()
        await exchange.gone.wait()
        heard_s[exchange.json["message"]] = now() - begun

    heard_s: dict[str, float] = {}
    async with ScriptedUpstream() as dead:
        dead.script = script
        ended = await ask(folder, dead.url.removesuffix("/v1"), *clients)
        assert [name for name, end in ended.items() if end.code == 0] == []
        for exchange in dead.exchanges:
            await exchange.gone.wait()
        assert Counter(exchange.json["message"] for exchange in dead.exchanges) == dict.fromkeys(clients, 1)
    assert heard_s.keys() == clients
    assert min(heard_s.values()) > 10
