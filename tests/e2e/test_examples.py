"""The examples that run in a browser: each one streams, stops, tells every ending, and sends a request only once."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import anyio
import pytest
from playwright.async_api import expect

from parley.testing.exchange import Exchange
from parley.testing.upstream import ScriptedUpstream, answer, delta, hang, in_turn, respond
from tests.support.browser import broken_parley, refusing_parley, served, turn
from tests.support.examples import AI_SDK_REACT, FETCH_EVENT_SOURCE, Example, Opened
from tests.support.npm import install_examples, run_script
from tests.support.running import running
from tests.support.scripts import Gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    import httpx
    from playwright.async_api import Page

    from parley.settings import Settings
    from parley.testing.exchange import Script
    from tests.support.logs import Logs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what the examples need, and build them."""
    folder = install_examples(tmp_path_factory.mktemp("repository"), AI_SDK_REACT.name, FETCH_EVENT_SOURCE.name)
    for example in (AI_SDK_REACT, FETCH_EVENT_SOURCE):
        run_script(folder / example.name, "build").check_returncode()
    return folder


@pytest.fixture(params=[AI_SDK_REACT, FETCH_EVENT_SOURCE], ids=lambda example: example.name)
def example(request: pytest.FixtureRequest) -> Example:
    """Return each example in turn, or the one that the test names."""
    return request.param  # type: ignore[no-any-return]  # an example


@pytest.fixture
def origin(example: Example, examples: Path) -> Iterator[str]:
    """Serve the example's page."""
    with served(examples / example.name / "www") as origin:
        yield origin


@pytest.fixture
async def parley(make_settings: Callable[..., Settings], logs: Logs, origin: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a Parley that allows requests from the example's origin, and waits for the model's first token."""
    async with running(make_settings(cors_origins=origin, hold_headers_s=60, first_token_timeout_s=60), logs) as client:
        yield client


@pytest.fixture
def opened(example: Example, page: Page, origin: str) -> Opened:
    """Return the example in a browser."""
    return Opened(example, page, origin)


def test_an_example_is_checked_against_the_types_of_its_packages(example: Example, examples: Path) -> None:
    """The compiler is strict."""
    checked = run_script(examples / example.name, "check")
    assert checked.returncode == 0, checked.stdout


async def test_a_page_shows_the_first_text_before_the_last_is_made(
    opened: Opened, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """A tab that is hidden and shown again does not send the request again."""
    gated = upstream.script = Gated(last=", \u2028last")
    await opened.ask(parley.base_url, until="first")
    await turn(opened.page, "hidden")
    await turn(opened.page, "visible")
    gated.may_end.set()
    await expect(opened.page.locator(opened.example.answer)).to_have_text("first, last")
    await opened.page.get_by_text(opened.example.done, exact=True).wait_for()
    assert await opened.answers() == ["first, \u2028last"]
    assert await opened.page.get_by_text("incomplete").count() == 0
    assert len(upstream.exchanges) == 1


async def test_the_stop_button_stops_the_model(
    opened: Opened, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The page keeps the text, and shows that it is not the whole answer."""
    upstream.script = Gated()
    await opened.ask(parley.base_url, until="first")
    await opened.page.get_by_role("button", name="Stop").click()
    await opened.page.get_by_text(opened.example.stopped).wait_for()
    await upstream.exchanges[0].gone.wait()
    assert await opened.answers() == ["first"]
    assert await opened.page.get_by_role("alert").count() == 0
    assert len(upstream.exchanges) == 1


async def test_the_stop_button_stops_a_model_that_has_sent_nothing(
    opened: Opened, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The page waits for the headers of the response."""
    upstream.script = hang
    await opened.ask(parley.base_url)
    exchange = await upstream.next_exchange()
    await opened.page.get_by_role("button", name="Stop").click()
    with anyio.fail_after(20):  # before any timeout
        await exchange.gone.wait()
    assert await opened.page.get_by_role("alert").count() == 0
    assert len(upstream.exchanges) == 1


async def test_a_page_that_is_left_for_another_stops_the_model(
    opened: Opened, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The browser keeps the page; going back shows a stopped page, which does not ask again."""
    upstream.script = Gated()
    await opened.ask(parley.base_url, until="first")
    await opened.page.goto(f"{opened.origin}/another")
    await upstream.exchanges[0].gone.wait()
    await opened.page.go_back(wait_until="commit")  # a page that was kept in the cache is not loaded again
    await opened.page.get_by_text(opened.example.stopped).wait_for()
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize(
    ("script", "shown", "text"),
    [
        (respond(429, {}, retry_after="1"), "upstream_rate_limited: ", ""),
        (answer("first", finish_reason=None), "upstream_truncated: ", "first"),
        (answer("first", finish_reason="length"), "The answer is incomplete: length.", "first"),
        (answer("first", finish_reason="content_filter"), "The answer is incomplete: content_filter.", "first"),
    ],
    ids=["HTTP", "chunk", "length", "content_filter"],
)
async def test_a_page_shows_why_an_answer_is_incomplete_and_the_correlation_id(
    opened: Opened,
    parley: httpx.AsyncClient,
    upstream: ScriptedUpstream,
    logs: Logs,
    script: Script,
    shown: str,
    text: str,
) -> None:
    """The page keeps text that arrives with the error, and sends one request, although it may be sent again."""
    upstream.script = script
    await opened.ask(parley.base_url)
    told = await opened.page.get_by_text(shown).text_content()
    line = await logs.line(number=2)  # the first line is that of the CORS preflight
    assert f"[{line['correlation_id']}]" in str(told)
    assert "".join(await opened.answers()) == text
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("end", [Exchange.end, Exchange.close, Exchange.abort], ids=lambda end: end.__name__)
async def test_a_page_does_not_take_a_part_for_the_whole(
    opened: Opened, upstream: ScriptedUpstream, end: Callable[[Exchange], Awaitable[None] | None]
) -> None:
    """The connection ends without `done` or `error`; the page shows the correlation id, and does not ask again."""
    is_seen = asyncio.Event()
    upstream.script = broken_parley(is_seen, end)
    await opened.ask(upstream.url.removesuffix("/v1"), until="first")
    is_seen.set()
    await opened.page.get_by_text("[c]").wait_for()
    await opened.page.get_by_text(re.compile("network error|connection")).wait_for()
    assert [exchange.path for exchange in upstream.exchanges] == ["/chat", "/chat"]  # the first is the CORS preflight


OUT_OF_TEA = {"code": "out_of_tea", "error": "", "detail": "No tea.", "action": "", "correlation_id": "c"}


@pytest.mark.parametrize(
    ("status", "body", "shown", "may_ask_again"),
    [
        (503, {**OUT_OF_TEA, "retryable": True, "retry_after_s": 1}, "out_of_tea: No tea. [c]", True),
        (418, {**OUT_OF_TEA, "retryable": False, "retry_after_s": None}, "out_of_tea: No tea. [c]", False),
        (502, "Bad Gateway", "HTTP 502, not from Parley", True),
    ],
    ids=["retryable", "final", "proxy"],
)
async def test_a_page_shows_an_error_that_it_does_not_know(
    opened: Opened, upstream: ScriptedUpstream, status: int, body: object, shown: str, *, may_ask_again: bool
) -> None:
    """A proxy sends it, or a later version of Parley; `retryable` says what the user can do."""
    upstream.script = refusing_parley(status, body)
    await opened.ask(upstream.url.removesuffix("/v1"))
    await opened.page.get_by_text(shown).wait_for()
    if opened.example is AI_SDK_REACT:
        assert await opened.page.get_by_role("button", name="Ask again").count() == may_ask_again


only_use_chat = pytest.mark.parametrize("example", [AI_SDK_REACT], ids=lambda example: example.name)


@only_use_chat
async def test_use_chat_sends_the_earlier_turns_again(
    opened: Opened, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Parley stores nothing; an answer's reasoning is no part of the history."""
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(thought, delta("Hello."), delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    upstream.script = script
    await opened.open(parley.base_url)
    await opened.page.get_by_label("Show the reasoning").check()
    for number, message in enumerate(["Hi", "Hi again"], start=1):
        await opened.send(message)
        await expect(opened.page.get_by_text("Hello.", exact=True)).to_have_count(number)
        await expect(opened.page.get_by_role("blockquote")).to_have_count(number)
        await opened.page.get_by_text("ready", exact=True).wait_for()
    turns = [(turn["role"], turn["content"]) for turn in upstream.exchanges[1].json["messages"]]
    assert turns[-3:] == [("user", "Hi"), ("assistant", "Hello."), ("user", "Hi again")]
    assert len(upstream.exchanges) == 2


@only_use_chat
async def test_use_chat_asks_again_only_if_the_user_says_so(
    opened: Opened, parley: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """The button is shown for errors that are worth it; the second request asks the same."""
    upstream.script = in_turn(answer("first", finish_reason=None), answer("Hello."))
    await opened.ask(parley.base_url)
    await opened.page.get_by_text("upstream_truncated: ").wait_for()
    await opened.page.get_by_role("button", name="Ask again").click()
    await opened.page.get_by_text("Hello.", exact=True).wait_for()
    await expect(opened.page.get_by_role("alert")).to_have_count(0)
    assert [exchange.message for exchange in upstream.exchanges] == ["hi", "hi"]


@only_use_chat
async def test_use_chat_gives_up_a_connection_that_is_dead(opened: Opened, upstream: ScriptedUpstream) -> None:
    """It gives up after three heartbeat intervals (12 s) without a byte, and closes the connection."""
    upstream.script = broken_parley(asyncio.Event())
    await opened.page.clock.install()
    await opened.ask(upstream.url.removesuffix("/v1"), until="first")
    await opened.page.clock.run_for(11_000)
    assert await opened.page.get_by_role("alert").count() == 0
    await opened.page.clock.run_for(2_000)
    await opened.page.get_by_text("The network connection is dead.").wait_for()
    await upstream.exchanges[1].gone.wait()
    assert len(upstream.exchanges) == 2
