"""The end of an agent's run: once, in time and complete, whatever its tools, its guardrails and the upstream do."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from parley.app import create_app
from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import Event, ReplyFailed, ReplyText
from parley.chat.messages import Message, Prompt
from parley.chat.record import Record
from parley.testing.faults import after, say, sse
from parley.testing.upstream import answer, delta, hang, in_turn, respond
from parley.wire.schema import DoneChunk, StartChunk, TextChunk
from tests.support import agents
from tests.support.running import problem, running, sending, stream
from tests.support.scripts import call, call_weather, tool_calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from parley.chat.service import ChatService
    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from parley.testing.upstream import ScriptedUpstream
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]

REQUEST = {"message": "What is the weather in Paris?"}
CHAT = b'POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"message":"Hi"}'
PROMPT = Prompt(messages=[Message("user", "Hi")], max_output_tokens=1000, timeout_s=60)
NOTICED_S = 1.0


@pytest.fixture(autouse=True)
async def nothing_is_left(upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """Fail the test if a task or a connection is left open, or asyncio reports an error."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    yield
    gc.collect()
    left = {task for task in asyncio.all_tasks() - before if "TestRunner" not in str(task.get_coro())}
    if left:
        _, left = await asyncio.wait(left, timeout=100)
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not left
    assert complaints == []
    assert all(connection.closed is not None for connection in upstream.connections)


def agent(name: str) -> str | None:
    """Return the path of one of the tests' agents; `none` stands for no agent."""
    return None if name == "none" else f"tests.support.agents:{name}"


@pytest.mark.parametrize("name", ["none", "attacked"])
@pytest.mark.parametrize("turns", range(12))
async def test_text_that_comes_just_when_parley_is_stopped_is_not_lost(
    make_settings: MakeSettings, upstream: ScriptedUpstream, name: str, turns: int
) -> None:
    """The text is either sent and counted, or neither."""
    upstream.script = after(("a",), hang)
    async with serving(make_settings(agent=agent(name))) as service:
        reading = asyncio.ensure_future(until(ReplyFailed, service.stream(PROMPT, Record(correlation_id="mine"))))
        await asked(upstream, 1)
        body = sse(*[delta("b")] * 3)
        upstream.exchanges[0].send_raw(b"%x\r\n%b\r\n" % (len(body), body))
        for _ in range(turns):
            await asyncio.sleep(0)
        service.stop("drain_timeout")
        events = await reading
    *texts, last = events[2:]
    assert isinstance(last, ReplyFailed)
    text = "".join(event.text for event in texts if isinstance(event, ReplyText))
    assert last.usage.output_tokens == len(text)
    assert text in {"a", "abbb"}


async def dying_in_arguments(exchange: Exchange) -> None:
    """Break off in the middle of a tool call."""
    piece = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": BAD}}
    await exchange.events(tool_calls(piece))
    exchange.abort()


BAD = '{"city": '
LONG = "x" * 500_000
QUESTION = '{"input": "Well?", "question": "Well?"}'
STUBBORN = call("stubborn_tool", text="a")

# Everything that a run can wait for: the agent, and the upstream's responses in order.
WAITS: dict[str, tuple[str, list[Script]]] = {
    "a tool": ("attacked", [call("hanging_tool")]),
    "a nested run": ("attacked", [call("ask_helper", QUESTION), after(("a",), hang)]),
    "a model": ("attacked", [call_weather, hang]),
    "a guardrail": ("guarded", [answer("Hello")]),
    "a guardrail and a tool": ("guarded", [call("hanging_tool")]),
    "a guardrail's model and a model": ("judged", [hang, hang]),
}
WAITS_AFTER_TEXT: dict[str, tuple[str, list[Script]]] = {
    "a tool, after text": ("attacked", [call("hanging_tool", text="a")]),
    "a tool that cannot be cancelled": ("attacked", [STUBBORN]),
    "a nested run, after text": ("attacked", [call("ask_helper", QUESTION, text="a"), after(("b",), hang)]),
    "a nested run that is streamed": ("attacked", [call("watch_helper", QUESTION, text="a"), after(("b",), hang)]),
    "a nested run that must succeed": ("attacked", [call("need_helper", QUESTION, text="a"), after(("b",), hang)]),
    "a model, after text": ("attacked", [call("weather", '{"city": "Paris"}', text="a"), hang]),
    "a model in the middle of its text": ("attacked", [after(("a",), hang)]),
    "a model and a guardrail": ("guarded", [after(("a",), hang)]),
    "the model of a plain answer": ("none", [after(("a",), hang)]),
}
ALL_WAITS = {**WAITS, **WAITS_AFTER_TEXT}


def each_of(waits: dict[str, tuple[str, list[Script]]]) -> pytest.MarkDecorator:
    """Parametrize a test with each of these waits."""
    return pytest.mark.parametrize(("name", "scripts"), waits.values(), ids=waits.keys())


@each_of({**ALL_WAITS, "a retry": ("judged", [respond(503, {})] * 2)})
async def test_a_client_that_leaves_ends_the_run(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs, name: str, scripts: list[Script]
) -> None:
    """The run ends whatever it is waiting for."""
    upstream.script = in_turn(*scripts)
    # More retries than the clock, which jumps, can skip the waits of while the client is still there.
    settings = make_settings(agent=agent(name), retries=10, hold_headers_s=0.01)
    async with running(settings, logs) as client:
        async with sending(client, CHAT) as (reader, _):
            await reader.readuntil(b"\r\n\r\n")
            while len(upstream.exchanges) < len(scripts):
                await upstream.next_exchange()
            for _ in range(50):
                await client.get("/health/live")
            left = asyncio.get_running_loop().time()
        line = await logs.line()
        for exchange in upstream.exchanges:
            await exchange.over.wait()
        assert asyncio.get_running_loop().time() - left < NOTICED_S * (1.5 if STUBBORN in scripts else 1)
    assert line["outcome"] == "client_disconnected"


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[ChatService]:
    """Run the service without a server, for what no HTTP request can do."""
    app = create_app(settings)
    provide: Any = app.dependencies["service"]
    async with app.lifespan():
        yield provide.dependency(settings)


@each_of(ALL_WAITS)
async def test_a_run_ends_at_its_deadline(
    make_settings: MakeSettings, upstream: ScriptedUpstream, name: str, scripts: list[Script]
) -> None:
    """The client learns of it at most 1.5 s later, or 2.5 s if a tool cannot be cancelled."""
    upstream.script = in_turn(*scripts)
    loop = asyncio.get_running_loop()
    settings = make_settings(agent=agent(name), request_timeout_s=3)
    async with running(settings) as client:
        begun = loop.time()
        response = await client.post("/chat", json=REQUEST)
        assert loop.time() - begun < 3 + 1.5 * NOTICED_S + NOTICED_S * (STUBBORN in scripts)
    assert response.text.count("request_timeout") == 1
    assert len(upstream.exchanges) == len(scripts)


async def until(kind: type, events: AsyncIterator[Event]) -> list[Event]:
    """Read events up to the first of this kind; the client reads nothing after it."""
    read: list[Event] = []
    async for event in events:
        read.append(event)
        if isinstance(event, kind):
            break
    return read


async def asked(upstream: ScriptedUpstream, calls: int) -> None:
    """Wait until the upstream has received this number of requests and Parley has processed its responses."""
    while len(upstream.exchanges) < calls:
        await upstream.next_exchange()
    for _ in range(100):
        await asyncio.sleep(0)


@each_of(ALL_WAITS)
async def test_a_run_ends_when_parley_is_stopped(
    make_settings: MakeSettings, upstream: ScriptedUpstream, name: str, scripts: list[Script]
) -> None:
    """The run ends whatever it is waiting for."""
    upstream.script = in_turn(*scripts)
    loop = asyncio.get_running_loop()
    async with serving(make_settings(agent=agent(name))) as service:
        reading = asyncio.ensure_future(until(ReplyFailed, service.stream(PROMPT, Record(correlation_id="mine"))))
        await asked(upstream, len(scripts))
        stopped = loop.time()
        service.stop("drain_timeout")
        *_, last = await reading
        assert loop.time() - stopped < 1.5 * NOTICED_S + NOTICED_S * (STUBBORN in scripts)
    assert isinstance(last, ReplyFailed)
    assert last.error.code is ErrorCode.SHUTTING_DOWN


@pytest.mark.parametrize("code", [ErrorCode.SHUTTING_DOWN, ErrorCode.REQUEST_TIMEOUT])
@each_of(WAITS_AFTER_TEXT)
async def test_a_run_ends_while_nobody_reads(
    make_settings: MakeSettings, upstream: ScriptedUpstream, name: str, scripts: list[Script], code: ErrorCode
) -> None:
    """The upstream connection is released without waiting until the client reads again."""
    upstream.script = in_turn(*scripts)
    async with serving(make_settings(agent=agent(name))) as service:
        events = service.stream(PROMPT, Record(correlation_id="mine"))
        await until(ReplyText, events)
        await asked(upstream, 1)
        if code is ErrorCode.SHUTTING_DOWN:
            service.stop("drain_timeout")
        await asyncio.sleep(PROMPT.timeout_s + 5)  # the client does not read
        for exchange in upstream.exchanges:
            assert exchange.over.is_set()
        (last,) = await until(ReplyFailed, events)
    assert isinstance(last, ReplyFailed)
    assert last.error.code is code


@pytest.mark.parametrize(
    ("name", "scripts", "code"),
    [
        ("attacked", [call("cancelled_tool")], ErrorCode.INTERNAL),
        ("attacked", [call("need_helper", QUESTION), respond(429, {})], ErrorCode.UPSTREAM_RATE_LIMITED),
        ("judged", [respond(401, {})], ErrorCode.UPSTREAM_AUTH),
        ("ping", [call("transfer_to_pong"), call("transfer_to_ping")] * 5, ErrorCode.TOO_MANY_TURNS),
        ("attacked", [call("weather", "[" * 5000)], ErrorCode.UPSTREAM_ERROR),
        ("attacked", [after((), dying_in_arguments)], ErrorCode.UPSTREAM_TRUNCATED),
        ("attacked", [call("weather", *[LONG] * 5)], ErrorCode.UPSTREAM_ERROR),
        (
            "attacked",
            [say(sse(tool_calls(*[{}] * 10_000), delta(finish_reason="tool_calls")))],
            ErrorCode.UPSTREAM_ERROR,
        ),
    ],
)
@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
async def test_a_run_that_fails_says_by_what(
    make_settings: MakeSettings,
    upstream: ScriptedUpstream,
    logs: Logs,
    name: str,
    scripts: list[Script],
    code: ErrorCode,
    path: str,
) -> None:
    """The error is reported once, and no text of a tool or an exception gets out."""
    upstream.script = in_turn(*scripts)
    async with running(make_settings(agent=agent(name)), logs) as client:
        assert problem(await client.post(path, json=REQUEST)).code is code
    assert (await logs.line())["error_code"] == code


@pytest.mark.parametrize("arguments", ["", BAD, "5", "null", "[]", '{"city": 5}', "x" * 100_000])
async def test_arguments_that_a_tool_cannot_take_are_the_models_to_mend(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs, arguments: str
) -> None:
    """The model gets openai-agents' error message and is asked again."""
    upstream.script = in_turn(call("weather", arguments), answer("Sorry."))
    async with running(make_settings(agent=agent("attacked")), logs) as client:
        *_, text, done = await stream(client, REQUEST)
    assert isinstance(text, TextChunk)
    assert text.text == "Sorry."
    assert isinstance(done, DoneChunk)
    result = upstream.exchanges[1].json["messages"][-1]
    assert (result["role"], result["tool_call_id"]) == ("tool", "call_weather")


async def test_an_upstream_that_gives_all_calls_the_same_id_can_be_used(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """Each call is run, and each result is sent back with its own ID."""
    upstream.script = in_turn(
        call("weather", '{"city": "Paris"}'), call("weather", '{"city": "Rome"}'), answer("Rain.")
    )
    async with running(make_settings(agent=agent("attacked"))) as client:
        *_, done = await stream(client, REQUEST)
    assert isinstance(done, DoneChunk)
    results = {
        turn["tool_call_id"]: turn["content"]
        for turn in upstream.exchanges[2].json["messages"]
        if turn["role"] == "tool"
    }
    assert list(results.values()) == ["It rains in Paris.", "It rains in Rome."]


async def test_what_a_tool_leaves_behind_asks_no_model_after_the_end(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """Nothing would count or stop such a model call."""

    async def script(exchange: Exchange) -> None:
        await (answer("Done.") if exchange.follows_a_tool else hang if exchange.message == "Well?" else begin)(exchange)

    begin = call("leave_helper", QUESTION)
    upstream.script = script
    async with running(make_settings(agent=agent("attacked"))) as client:
        assert isinstance((await stream(client, REQUEST))[-1], DoneChunk)
        (task,) = agents.left_behind
        with pytest.raises(ChatError):
            await task
        agents.left_behind.clear()
        for exchange in upstream.exchanges:
            await exchange.over.wait()


@pytest.mark.parametrize("tool", ["run_helper", "stream_helper", "ask_helper", "watch_helper"])
async def test_a_run_within_a_tool_asks_parleys_models(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs, tool: str
) -> None:
    """The nested run's text is not part of the answer, but its usage is part of the answer's usage."""
    upstream.script = in_turn(call(tool, QUESTION), answer("secret"), answer("Done."))
    async with running(make_settings(agent=agent("attacked")), logs) as client:
        start, text, done = await stream(client, REQUEST)
    assert isinstance(start, StartChunk)
    assert start.model == "scripted-1"
    assert isinstance(text, TextChunk)
    assert text.text == "Done."
    assert isinstance(done, DoneChunk)
    assert done.usage.output_tokens == 10 + 3 + 3
    assert [exchange.json["model"] for exchange in upstream.exchanges] == ["scripted-1", "other-1", "scripted-1"]
    assert upstream.exchanges[2].json["messages"][-1]["content"] == "secret"
