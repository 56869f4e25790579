"""Parley in a real browser: pages of another origin, and its own page."""

from __future__ import annotations

import asyncio
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from parley.testing.exchange import Exchange
from parley.testing.upstream import ScriptedUpstream, answer, delta, respond
from tests.support.browser import broken_parley, served
from tests.support.running import running
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import httpx
    import playwright.async_api

    from parley.settings import Settings
    from tests.support.logs import Logs

PROGRAM = Path(__file__).parents[1] / "clients" / "browser"


@pytest.fixture
def origin() -> Iterator[str]:
    """Serve the program from an origin that is not Parley's."""
    with served(PROGRAM) as origin:
        yield origin


@pytest.fixture
async def parley(make_settings: Callable[..., Settings], logs: Logs, origin: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a Parley that allows requests from the programs' origin."""
    async with running(make_settings(cors_origins=origin), logs) as client:
        yield client


def program(origin: str, url: object) -> str:
    """Return the program's address, with the message to send and the URL of the Parley to call."""
    question = urllib.parse.urlencode({"baseUrl": str(url).rstrip("/"), "message": "hi"})
    return f"{origin}/program.html?{question}"


async def test_a_page_of_another_origin_shows_the_first_text_before_the_last_is_made(
    page: playwright.async_api.Page, origin: str, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The model sends the last text when the page shows the first; it has a line end that only JavaScript knows."""
    gated = upstream.script = Gated(last=", \u2028last")
    await page.goto(program(origin, parley.base_url))
    await page.get_by_text("first", exact=True).wait_for()
    gated.may_end.set()
    await page.get_by_text("Done.").wait_for()
    assert await page.locator("#answer").text_content() == "first, \u2028last"


async def test_a_page_that_stops_half_way_stops_the_model(
    page: playwright.async_api.Page, origin: str, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The page closes the connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("first"))
        await exchange.gone.wait()

    upstream.script = script
    await page.goto(program(origin, parley.base_url))
    await page.get_by_text("first", exact=True).wait_for()
    await page.get_by_role("button").click()
    await page.get_by_text("Stopped.").wait_for()
    await upstream.exchanges[0].gone.wait()


async def test_a_page_that_is_left_for_another_stops_the_model(
    page: playwright.async_api.Page, origin: str, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The user opens another page in the same tab; going back shows a stopped page, which does not ask again."""
    upstream.script = Gated()
    await page.goto(program(origin, parley.base_url))
    await page.get_by_text("first", exact=True).wait_for()
    await page.goto(f"{origin}/")
    await upstream.exchanges[0].gone.wait()
    await page.go_back(wait_until="commit")  # a page that was kept in the cache is not loaded again
    await page.get_by_text("Stopped.").wait_for()
    assert len(upstream.exchanges) == 1


async def test_a_page_gives_up_a_connection_that_is_dead(
    page: playwright.async_api.Page, origin: str, upstream: ScriptedUpstream
) -> None:
    """The page gives up after three heartbeat intervals (12 s) without a byte, and does not ask again.

    The browser itself would wait for minutes.
    """
    upstream.script = broken_parley(asyncio.Event())
    await page.clock.install()
    await page.goto(program(origin, upstream.url.removesuffix("/v1")))
    await page.get_by_text("first", exact=True).wait_for()
    await page.clock.run_for(11_000)
    assert await page.locator("#end").text_content() == ""
    await page.clock.run_for(2_000)
    await page.get_by_text("The connection is dead.").wait_for()
    await upstream.exchanges[1].gone.wait()
    assert len(upstream.exchanges) == 2


async def test_a_page_can_read_what_went_wrong_and_whom_to_quote(
    page: playwright.async_api.Page, origin: str, parley: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The page sends one request."""
    upstream.script = respond(429, {}, retry_after="1")
    await page.goto(program(origin, parley.base_url))
    await page.get_by_text("upstream_rate_limited: ").wait_for()
    line = await logs.line(number=2)  # the first line is that of the CORS preflight
    assert f"[{line['correlation_id']}]" in str(await page.locator("#end").text_content())
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("length", "The answer is incomplete: length."),
        ("content_filter", "The answer is incomplete: content_filter."),
        (None, "upstream_truncated: The upstream's stream ended without a finish reason."),
    ],
    ids=["length", "content_filter", "error"],
)
async def test_a_page_tells_why_an_answer_is_not_whole_and_whom_to_quote(
    page: playwright.async_api.Page,
    origin: str,
    parley: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    logs: Logs,
    reason: str | None,
    end: str,
) -> None:
    """The page shows the partial answer, and sends one request."""
    upstream.script = answer("first", finish_reason=reason)
    await page.goto(program(origin, parley.base_url))
    await page.get_by_text(end).wait_for()
    line = await logs.line(number=2)  # the first line is that of the CORS preflight
    assert await page.locator("#end").text_content() == f"{end} [{line['correlation_id']}]"
    assert await page.locator("#answer").text_content() == "first"
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("end", [Exchange.end, Exchange.close, Exchange.abort], ids=lambda end: end.__name__)
async def test_a_page_does_not_take_a_part_for_the_whole(
    page: playwright.async_api.Page,
    origin: str,
    upstream: ScriptedUpstream,
    end: Callable[[Exchange], Awaitable[None] | None],
) -> None:
    """The connection ends without `done` or `error`; the page shows the correlation id, and does not ask again."""
    is_seen = asyncio.Event()
    upstream.script = broken_parley(is_seen, end)
    await page.goto(program(origin, upstream.url.removesuffix("/v1")))
    await page.get_by_text("first", exact=True).wait_for()
    is_seen.set()
    await page.get_by_text("[c]").wait_for()
    assert [exchange.path for exchange in upstream.exchanges] == ["/chat", "/chat"]


async def test_a_page_of_an_origin_that_is_not_given_gets_nothing(
    page: playwright.async_api.Page, origin: str, client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The browser does not even send the message."""
    await page.goto(program(origin, client.base_url))
    await page.get_by_text("Failed to fetch").wait_for()
    assert upstream.exchanges == []


async def test_the_contracts_page_works_without_a_network(
    page: playwright.async_api.Page, client: httpx.AsyncClient
) -> None:
    """The page shows the operations, can call one, and loads nothing from any other host."""
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    await page.goto(f"{client.base_url}/schema")
    await page.get_by_text("Stream an answer").click()
    await page.get_by_role("button", name="Try it out").click()
    await page.get_by_role("button", name="Execute").click()
    await page.get_by_text('"finish_reason":"stop"').first.wait_for()
    assert problems == []
    assert {urllib.parse.urlsplit(url).netloc for url in requests} == {client.base_url.netloc.decode()}
