"""What an operator sees: health checks, unexpected errors, and logs that contain nothing of a request's text."""

from __future__ import annotations

import urllib.parse
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, ClassVar

import anyio
import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.testing import AsyncTestClient

from parley.agent.plain import PlainAgent
from parley.chat.errors import ErrorCode
from parley.chat.events import ReplyText
from parley.chat.service import ChatService
from parley.chat.watch import Untraced
from parley.providers.calls import Upstreams
from parley.providers.upstream import Upstream
from parley.settings import Secret
from parley.telemetry.metrics import metrics
from parley.telemetry.plugin import TelemetryPlugin
from parley.testing.faults import after, ping
from parley.testing.upstream import ScriptedUpstream, delta, in_turn, respond
from parley.web.controllers import ChatController
from parley.web.errors import EXCEPTION_HANDLERS
from parley.web.keys import KeyGuard
from parley.web.request import ChatAPIRequest
from parley.wire.schema import ErrorChunk, TextChunk
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.running import problem, read_chunks, running, stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import httpx

    from parley.chat.run import Attempt
    from parley.chat.service import Agent
    from parley.chat.watch import CallSpan
    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from tests.support.logs import Logs

REQUEST = {"message": CANARY}


async def test_a_parley_whose_upstream_answers_is_live_and_ready(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Parley asks the upstream at most every few seconds, however often probes arrive."""
    live = await client.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "live", "reason": None})
    for _ in range(3):
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reason": None})
    assert upstream.models_requests == 1


async def test_probes_that_come_while_the_upstream_is_asked_share_its_answer(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """An upstream that is slow to answer is not sent more requests for it."""
    all_came = anyio.Event()

    async def script(exchange: Exchange) -> None:
        await all_came.wait()
        await respond(200, {})(exchange)

    upstream.models_script = script
    statuses: list[int] = []

    async def probe() -> None:
        statuses.append((await client.get("/health/ready")).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(probe)
        for _ in range(3):
            await client.get("/health/live")  # by then, the probes have arrived
        all_came.set()
    assert (statuses, upstream.models_requests) == ([200] * 3, 1)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (respond(401, {}), "upstream_auth"),
        (respond(403, {}), None),  # some servers do not let everybody list the models
        (respond(500, {}), None),  # some servers fail at this request
        (respond(404, {}), None),  # some servers do not list their models
        (respond(301, {}, location="/v1/models"), None),  # a redirect is an answer; Parley does not follow it
    ],
)
async def test_a_parley_whose_upstream_refuses_is_not_ready_and_says_why(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, script: Script, reason: str | None
) -> None:
    """Parley is still live: a restart would not fix the upstream."""
    upstream.models_script = script
    ready = await client.get("/health/ready")
    assert ready.status_code == (200 if reason is None else 503)
    assert ready.json() == {"status": "ready" if reason is None else "not_ready", "reason": reason}
    assert upstream.models_requests == 1
    assert (await client.get("/health/live")).status_code == 200


async def test_a_parley_is_ready_if_its_first_model_or_its_second_answers(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream
) -> None:
    """If both fail, the reason is that of the second model."""
    upstream.models_script = respond(401, {})
    async with ScriptedUpstream() as second:
        settings = make_settings(fallback_base_url=second.url, fallback_model="second-1")
        async with running(settings) as client:
            assert (await client.get("/health/ready")).status_code == 200
        second.models_script = respond(401, {})
        async with running(settings) as client:
            assert (await client.get("/health/ready")).json()["reason"] == "upstream_auth"
    assert upstream.models_requests == 2


async def test_an_upstream_that_answers_without_end_is_not_waited_for(
    client: httpx.AsyncClient, upstream: ScriptedUpstream
) -> None:
    """Each byte arrives soon, but the last one never does."""
    upstream.models_script = after((), ping)
    with anyio.fail_after(10):
        ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "upstream_unreachable")


async def test_probes_are_logged_at_debug_level_only(make_settings: Callable[..., Settings], logs: Logs) -> None:
    """Otherwise they would drown out the other lines."""
    async with running(make_settings(log_level="info"), logs) as client:
        await client.get("/health/ready")
        assert '"/health' not in logs.getvalue()
        await stream(client, REQUEST)
        assert (await logs.line())["level"] == "info"


async def test_what_an_upstream_says_is_logged_only_where_it_is_asked_for_and_never_the_key(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Upstreams quote keys, some keys look like plain words, and some error bodies are not JSON or not UTF-8."""
    key = "5f1a-plain-words-of-a-key"
    text = f"Incorrect key provided: {key}. " + "x" * 1900 + key

    async def script(exchange: Exchange) -> None:
        await exchange.head(401)
        await exchange.write(b"\xff" + text.encode())
        await exchange.end()

    in_json = respond(401, {"error": {"message": text}})
    upstream.script = in_turn(in_json, in_json, script)
    async with running(make_settings(openai_api_key=Secret(key)), logs) as client:
        await client.post("/chat", json=REQUEST)
    assert "upstream_text" not in await logs.line("upstream_refused")
    async with running(make_settings(openai_api_key=Secret(key), log_upstream_text=True), logs) as client:
        for number in (2, 3):
            await client.post("/chat", json=REQUEST)
            said = (await logs.line("upstream_refused", number=number))["upstream_text"]
            assert "Incorrect key provided: ***. " in said
            assert key[:8] not in said


class BrokenAgent:
    """An agent with a bug."""

    model_names: ClassVar = ["broken"]
    max_streams = 1
    may_withhold = False

    async def answer(self, *_: object) -> AsyncGenerator[ReplyText, None]:
        """Raise an unexpected error whose message must not get out."""
        for text in self.texts:
            yield ReplyText(text)
        raise RuntimeError(CANARY)

    async def check(self) -> None:
        """Report that the agent is ready."""

    texts: tuple[str, ...] = ()


class LateBrokenAgent(BrokenAgent):
    """An agent with a bug that shows after its first text."""

    texts = ("Hello",)


class BrokenTracer(Untraced):
    """A tracer with a bug, which shows between Parley and its upstream."""

    asked = 0

    def begin(self, _: Attempt, /) -> CallSpan:
        """Raise an error."""
        self.asked += 1
        raise RuntimeError(CANARY)


def broken(settings: Settings, agent: Agent, logs: Logs) -> Litestar:
    """Return a Parley app that has this agent."""
    service = ChatService(settings, agent, metrics())
    with redirect_stdout(logs):
        return Litestar(
            [ChatController],
            guards=[KeyGuard([])],
            dependencies={
                "service": Provide(lambda: service, sync_to_thread=False),
                "settings": Provide(lambda: settings, sync_to_thread=False),
            },
            exception_handlers=EXCEPTION_HANDLERS,
            plugins=[TelemetryPlugin(settings)],
            request_class=ChatAPIRequest,
        )


@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
async def test_an_unexpected_error_is_logged_once_and_answered_with_internal(
    make_settings: Callable[..., Settings], logs: Logs, path: str
) -> None:
    """The line has the correlation ID, the error's type and its location, but not its message."""
    async with AsyncTestClient(broken(make_settings(), BrokenAgent(), logs)) as client:
        response = await client.post(path, json=REQUEST)
    assert response.status_code == 500
    assert problem(response).code is ErrorCode.INTERNAL
    line = await logs.line("unexpected_error")
    assert line["correlation_id"] == response.headers["x-correlation-id"]
    assert line["exception"][0]["type"] == "builtins.RuntimeError"
    assert line["exception"][0]["places"][-1].endswith(" answer")
    assert (await logs.line())["error_code"] == "internal"


async def test_an_unexpected_error_in_the_middle_of_an_answer_ends_it_with_the_truth(
    make_settings: Callable[..., Settings], logs: Logs
) -> None:
    """The text that had arrived is kept; the error is logged once."""
    async with AsyncTestClient(broken(make_settings(), LateBrokenAgent(), logs)) as client:
        response = await client.post("/chat", json=REQUEST)
    _, text, error = read_chunks(response.content)
    assert text == TextChunk(seq=1, text="Hello")
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.INTERNAL
    line = await logs.line("unexpected_error")
    assert line["correlation_id"] == response.headers["x-correlation-id"]
    assert line["exception"][0]["places"][-1].endswith(" answer")


async def test_an_unexpected_error_is_not_tried_again(make_settings: Callable[..., Settings], logs: Logs) -> None:
    """A retry does not fix a bug of Parley's own."""
    settings, tracer = make_settings(retries=2), BrokenTracer()
    upstream = Upstream(
        base_url="http://127.0.0.1:9/v1",
        api_key=None,
        model_name="broken",
        instructions=None,
        temperature=None,
        connect_timeout_s=5,
        watch=metrics(),
        tracer=tracer,
    )
    agent = PlainAgent(Upstreams([upstream]), settings)
    async with AsyncTestClient(broken(settings, agent, logs)) as client:
        response = await client.post("/chat", json=REQUEST)
    assert problem(response).code is ErrorCode.INTERNAL
    assert tracer.asked == 1


TOLD = {"error": {"message": f"{CANARY}: no", "type": "insufficient_quota", "code": CANARY}}


async def in_band(exchange: Exchange) -> None:
    """Report an error in the middle of an answer."""
    await exchange.head(x_request_id="req_1")
    await exchange.events(delta("Hello"), TOLD)
    await exchange.end()


@pytest.mark.parametrize(("script", "status"), [(respond(429, TOLD, x_request_id="req_1"), 429), (in_band, 200)])
async def test_an_upstreams_error_is_logged_by_all_but_its_words(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, script: Script, status: int
) -> None:
    """The upstream's operators need its request ID; the error type comes from a fixed list, and is not free text."""
    upstream.script = script
    await client.post("/chat", json=REQUEST, headers={"X-Correlation-ID": "mine"})
    line = await logs.line("upstream_refused")
    assert line.pop("timestamp")
    assert line.pop("logger")
    assert line == {
        "level": "warning",
        "event": "upstream_refused",
        "correlation_id": "mine",
        "upstream_status": status,
        "upstream_request_id": "req_1",
        "upstream_error_type": "insufficient_quota",
    }


async def test_an_upstreams_words_are_logged_where_that_is_wanted(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Anything in the text that looks like a secret is still hidden."""
    upstream.script = respond(400, {"error": {"message": "Incorrect API key provided: sk-abc123def456. Bad luck."}})
    async with running(make_settings(log_upstream_text=True), logs) as client:
        await client.post("/chat", json=REQUEST)
    assert (await logs.line("upstream_refused"))["upstream_text"] == (
        '{"error": {"message": "Incorrect API key provided: ***. Bad luck."}}'
    )


@pytest.mark.parametrize(
    "quoted",
    [
        CANARY_KEY,
        CANARY_KEY[:12],
        urllib.parse.quote("".join(f"&#{ord(character)};" for character in CANARY_KEY)),
        "".join(f"\\u{ord(character):04x}" for character in CANARY_KEY),
    ],
)
async def test_no_key_is_in_an_upstreams_words_however_it_quotes_it(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs, quoted: str
) -> None:
    """The key is replaced even if the upstream escapes it or cuts it short."""
    upstream.script = respond(400, {"error": {"message": f"Wrong: {quoted}!", "code": "a_name_of_its_own"}})
    async with running(make_settings(log_upstream_text=True), logs) as client:
        await client.post("/chat", json=REQUEST)
    line = await logs.line("upstream_refused")
    assert "Wrong: ***!" in line["upstream_text"]
    assert line["upstream_error_type"] == "other"


async def test_the_contract_is_served(client: httpx.AsyncClient) -> None:
    """The errors refer to this path."""
    response = await client.get("/schema/openapi.json")
    assert response.json()["paths"].keys() == {"/chat", "/chat/complete", "/info", "/health/live", "/health/ready"}
