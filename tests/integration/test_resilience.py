"""Parley's handling of trouble: retries, fallback, heartbeats, admission, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest

from parley.chat.errors import ErrorCode
from parley.chat.events import NO_USAGE, Usage
from parley.settings import Secret
from parley.testing.faults import after, pause, reset, say, sse
from parley.testing.upstream import ScriptedUpstream, answer, delta, hang, in_turn, respond
from parley.wire.schema import DoneChunk, ErrorChunk, ErrorResponse, StartChunk, TextChunk
from tests.support.canaries import CANARY
from tests.support.running import BOTH, FORECASTER, kind, problem, read_chunks, running, sending, stream, with_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from tests.support.logs import Logs

    MakeSettings = Callable[..., Settings]

REQUEST = {"message": CANARY}


# Retries


@BOTH
@pytest.mark.parametrize("path", ["/chat", "/chat/complete"])
@pytest.mark.parametrize(
    "trouble",
    [
        *(respond(status, {}) for status in (408, 409, 429, 500, 529)),
        reset,
        say(sse({"choices": [{"delta": {"role": "assistant"}}]}, "[DONE]")),  # no text and no finish reason
    ],
)
async def test_trouble_that_passes_is_not_the_callers(
    make_settings: MakeSettings, agent: str | None, upstream: ScriptedUpstream, logs: Logs, path: str, trouble: Script
) -> None:
    """Parley asks the upstream again, and the log gives the number of attempts."""
    upstream.script = in_turn(trouble, answer("Hel", "lo"))
    async with running(make_settings(retries=1), logs) as client:
        response = await client.post(path, json=REQUEST)
    assert response.status_code == 200
    assert len(upstream.exchanges) == 2
    assert (await logs.line())["attempts"] == (2 if agent is None else 3)


@BOTH
@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_the_upstream_is_asked_again_as_often_as_is_set(
    make_settings: MakeSettings, upstream: ScriptedUpstream, retries: int
) -> None:
    """After the last retry, the caller gets the upstream's error."""
    upstream.script = respond(503, {})
    async with running(make_settings(retries=retries)) as client:
        assert problem(await client.post("/chat", json=REQUEST)).code is ErrorCode.UPSTREAM_ERROR
    assert len(upstream.exchanges) == 1 + retries


@BOTH
@pytest.mark.parametrize(
    "script",
    [
        respond(400, {}),
        respond(401, {}),
        respond(404, {}),
        respond(422, {}),
        respond(429, {}, retry_after="6"),  # longer than Parley waits before a retry
        after(("a",), reset),
    ],
)
async def test_what_asking_again_does_not_mend_is_not_asked_again(
    make_settings: MakeSettings, upstream: ScriptedUpstream, script: Script
) -> None:
    """Once text has been sent, no request is retried."""
    upstream.script = script
    async with running(make_settings(retries=2)) as client:
        await client.post("/chat", json=REQUEST)
    assert len(upstream.exchanges) == 1


@BOTH
async def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """The caller is told at once how long to wait."""
    upstream.script = respond(429, {}, retry_after="5")
    async with running(make_settings(retries=2, first_token_timeout_s=4)) as client:
        error = problem(await client.post("/chat", json=REQUEST))
    assert (error.code, error.retry_after_s) == (ErrorCode.UPSTREAM_RATE_LIMITED, 5)
    assert len(upstream.exchanges) == 1


@BOTH
@pytest.mark.parametrize(("retry_after", "at_least_s", "at_most_s"), [("3", 3, 4), ("5", 5, 6), (None, 0.1, 1)])
async def test_the_upstream_is_asked_again_when_it_says(
    make_settings: MakeSettings,
    upstream: ScriptedUpstream,
    retry_after: str | None,
    at_least_s: float,
    at_most_s: float,
) -> None:
    """Without a Retry-After, Parley asks again soon."""
    refuse = respond(503, {}, **({} if retry_after is None else {"retry_after": retry_after}))
    asked: list[float] = []

    async def script(exchange: Exchange) -> None:
        asked.append(asyncio.get_running_loop().time())
        await (refuse if len(asked) == 1 else answer("a"))(exchange)

    upstream.script = script
    async with running(make_settings(retries=1)) as client:
        assert isinstance((await stream(client, REQUEST))[-1], DoneChunk)
    first, second = asked
    assert at_least_s <= second - first < at_most_s


@BOTH
async def test_a_connection_that_has_gone_stale_costs_nobody_an_answer(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """The upstream closes the connection just when Parley uses it again."""
    upstream.script = in_turn(answer("a"), reset, answer("b"))
    async with running(make_settings(retries=1)) as client:
        for _ in range(2):
            assert isinstance((await stream(client, REQUEST))[-1], DoneChunk)


# Fallback


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    """Run a second upstream."""
    async with ScriptedUpstream() as second:
        second.script = answer("from ", "the second")
        yield second


@BOTH
@pytest.mark.parametrize(
    "script", [respond(401, {}), respond(404, {}), respond(429, {}), respond(500, {}), reset, hang, after((), hang)]
)
async def test_where_the_first_model_fails_the_second_answers(
    make_settings: MakeSettings, upstream: ScriptedUpstream, second: ScriptedUpstream, logs: Logs, script: Script
) -> None:
    """The start chunk and the log name the model that answered."""
    upstream.script = script
    settings = make_settings(
        first_token_timeout_s=1,
        fallback_base_url=second.url,
        fallback_api_key=Secret("sk-second-key"),
        fallback_model="second-1",
    )
    async with running(settings, logs) as client:
        start, *texts, done = await stream(client, REQUEST)
    assert isinstance(start, StartChunk)
    assert start.model == "second-1"
    assert "".join(text.text for text in texts if isinstance(text, TextChunk)) == "from the second"
    assert isinstance(done, DoneChunk)
    assert second.exchanges[0].headers["authorization"] == "Bearer sk-second-key"
    assert (await logs.line())["model"] == "second-1"
    assert (await logs.line("upstream_failed"))["model"] == "scripted-1"


@BOTH
async def test_the_second_model_may_be_one_of_the_same_upstream(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """The fallback then uses the first model's address and key."""
    upstream.script = in_turn(respond(404, {}), answer("a"))
    async with running(make_settings(fallback_model="second-1")) as client:
        await stream(client, REQUEST)
    assert [exchange.json["model"] for exchange in upstream.exchanges] == ["scripted-1", "second-1"]
    assert len({exchange.headers["authorization"] for exchange in upstream.exchanges}) == 1


@BOTH
async def test_a_key_is_not_sent_to_another_upstream(
    make_settings: MakeSettings, upstream: ScriptedUpstream, second: ScriptedUpstream
) -> None:
    """The key is the first upstream's secret; a fallback without a key gets no key."""
    upstream.script = respond(500, {})
    async with running(make_settings(fallback_base_url=second.url, fallback_model="second-1")) as client:
        await stream(client, REQUEST)
    assert "authorization" in upstream.exchanges[0].headers
    assert "authorization" not in second.exchanges[0].headers


@BOTH
@pytest.mark.parametrize(
    ("script", "last"),
    [
        (respond(400, {"error": {"code": "context_length_exceeded"}}), None),
        (after(("a",), reset), ErrorCode.UPSTREAM_TRUNCATED),
    ],
)
async def test_the_second_model_is_not_asked_for_what_it_could_not_mend(
    make_settings: MakeSettings, upstream: ScriptedUpstream, second: ScriptedUpstream, script: Script, last: Any
) -> None:
    """A fallback cannot help if the request is too long, or the answer has begun."""
    upstream.script = script
    async with running(make_settings(fallback_base_url=second.url, fallback_model="second-1")) as client:
        response = await client.post("/chat", json=REQUEST)
    assert response.status_code == (400 if last is None else 200)
    assert second.exchanges == []


@BOTH
async def test_where_both_fail_the_second_error_is_told(
    make_settings: MakeSettings, upstream: ScriptedUpstream, second: ScriptedUpstream, logs: Logs
) -> None:
    """The second model was tried last; the first model's error has its own log line."""
    upstream.script = respond(500, {})
    second.script = respond(401, {})
    async with running(make_settings(fallback_base_url=second.url, fallback_model="second-1"), logs) as client:
        assert problem(await client.post("/chat", json=REQUEST)).code is ErrorCode.UPSTREAM_AUTH
    line = await logs.line("upstream_failed")
    assert (line["model"], line["error_code"]) == ("scripted-1", "upstream_error")


# Headers and heartbeats


@BOTH
async def test_a_slow_model_gets_its_headers_and_a_pulse(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """A heartbeat before or between texts is a comment with a single line end, which no parser makes an event."""
    pings = [asyncio.Event(), asyncio.Event()]

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await pings[0].wait()
        await exchange.events(delta("a"))
        await pings[1].wait()
        await exchange.events(delta("b"), delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    upstream.script = script
    received = b""
    async with (
        running(make_settings(hold_headers_s=0.05, heartbeat_s=0.05), logs) as client,
        client.stream("POST", "/chat", json=REQUEST) as response,
    ):
        assert response.status_code == 200
        async for data in response.aiter_bytes():
            received += data
            if received.endswith(b": ping\n"):
                pings[b"event: text" in received].set()
    assert received.startswith(b": ping\n")
    assert b": ping\n\n" not in received
    assert [kind(chunk) for chunk in read_chunks(received)] == ["start", "text", "text", "done"]
    assert (await logs.line())["chunks"] == 4


@BOTH
async def test_a_stream_that_is_not_silent_has_no_pulse(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """Each text arrives before a heartbeat is due."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(5):
            await exchange.events(delta("a"))
            await pause(exchange, 6)
        await exchange.events(delta(finish_reason="stop"), "[DONE]")
        await exchange.end()

    upstream.script = script
    async with running(make_settings(heartbeat_s=10, request_timeout_s=60)) as client:
        response = await client.post("/chat", json=REQUEST)
    assert b": ping" not in response.content
    assert [kind(chunk) for chunk in read_chunks(response.content)] == ["start", *["text"] * 5, "done"]


@BOTH
async def test_a_failure_after_the_headers_is_a_stream_of_one_error(
    make_settings: MakeSettings, agent: str | None, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The status and Retry-After can no longer report the failure."""
    upstream.script = hang
    async with running(make_settings(hold_headers_s=0.05, first_token_timeout_s=1), logs) as client:
        (error,) = await stream(client, REQUEST)
    assert isinstance(error, ErrorChunk)
    assert (error.error.code, error.usage) == (
        ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT,
        with_tool(agent, NO_USAGE),
    )
    line = await logs.line()
    assert (line["status"], line["outcome"], line["error_code"]) == (200, "failed", "upstream_first_token_timeout")


# Admission


class Gate:
    """A script that answers once the gate is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.arrivals = 0
        self.arrived = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Wait until the gate is open or the connection is gone, then answer."""
        self.arrivals += 1
        self.arrived.set()
        await asyncio.wait(
            {asyncio.ensure_future(self.open.wait()), asyncio.ensure_future(exchange.gone.wait())},
            return_when=asyncio.FIRST_COMPLETED,
        )
        await answer("Hi")(exchange)


async def test_more_than_the_places_wait_and_more_than_the_queue_are_refused(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """The refusal is immediate, says when to retry, and sends no upstream request; health checks still work."""
    gate = upstream.script = Gate()
    statuses: list[int] = []
    async with running(make_settings(max_streams=2, max_queue=1, queue_timeout_s=20), logs) as client:

        async def ask() -> None:
            statuses.append((await client.post("/chat", json=REQUEST)).status_code)

        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(ask)
                while gate.arrivals < 2:
                    await gate.arrived.wait()
                    gate.arrived.clear()
                while (response := await client.post("/chat", json={**REQUEST, "timeout_s": 1})).status_code == 504:
                    pass  # the third request had not arrived yet, and this one took its place in the queue
                assert response.status_code == 503
                error = problem(response)
                assert (error.code, error.retryable) == (ErrorCode.OVERLOADED, True)
                assert error.retry_after_s is not None
                assert 1 <= error.retry_after_s <= 60
                assert response.headers["retry-after"] == str(error.retry_after_s)
                assert gate.arrivals == 2
                assert (await client.get("/health/ready")).status_code == 200
                gate.open.set()
    assert statuses == [200, 200, 200]
    assert gate.arrivals == 3


async def test_a_wait_in_vain_is_refused(make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs) -> None:
    """Headers are held while a request waits, so that both timeouts are HTTP errors; the wait is logged."""
    gate = upstream.script = Gate()
    settings = make_settings(max_streams=1, queue_timeout_s=0.2, hold_headers_s=0.01)
    async with running(settings, logs) as client, anyio.create_task_group() as group:
        group.start_soon(lambda: client.post("/chat", json=REQUEST))
        await gate.arrived.wait()
        assert problem(await client.post("/chat", json=REQUEST)).code is ErrorCode.OVERLOADED
        assert (await logs.line())["queue_ms"] >= 200
        impatient = {**REQUEST, "timeout_s": 0.1}
        assert problem(await client.post("/chat", json=impatient)).code is ErrorCode.REQUEST_TIMEOUT
        assert (await logs.line(number=2))["queue_ms"] >= 100
        gate.open.set()


async def test_who_leaves_the_queue_leaves_no_gap(make_settings: MakeSettings, upstream: ScriptedUpstream) -> None:
    """A client that leaves frees its place in the queue, and the stream places stay free, too."""
    gate = upstream.script = Gate()
    async with running(make_settings(max_streams=1, max_queue=1, queue_timeout_s=20)) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.post("/chat", json=REQUEST))
            await gate.arrived.wait()
            for _ in range(3):
                with anyio.move_on_after(0.1):
                    assert (await client.post("/chat", json=REQUEST)).status_code == 200
            gate.open.set()
        assert isinstance((await stream(client, REQUEST))[-1], DoneChunk)


class Arrivals:
    """A script that records which requests have arrived; one request in five gets no text."""

    def __init__(self, number: int) -> None:
        self.seen = [asyncio.Event() for _ in range(number)]

    async def __call__(self, exchange: Exchange) -> None:
        """Record the request and never end the answer."""
        message = exchange.message
        if message.isdigit():
            self.seen[int(message)].set()
        texts = [] if message.isdigit() and int(message) % 5 == 2 else ["word "] * 20
        await after(texts, hang)(exchange)


async def leave(client: httpx.AsyncClient, arrivals: Arrivals, number: int) -> None:
    """Send a request and leave at a point that depends on its number."""
    request = {"message": str(number)}
    match number % 5:
        case 0:  # during the request
            async with sending(client, CHAT + b'{"mess'):
                pass
        case 1:  # right after the request
            async with sending(client, CHAT + b'{"message":"x"}'):
                pass
        case 2:  # before the first text
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.post("/chat/complete", json=request))
                await arrivals.seen[number].wait()
                group.cancel_scope.cancel()
        case _:  # somewhere in the stream
            async with client.stream("POST", "/chat", json=request) as response:
                wanted = number % 250  # the stream has at least 250 bytes; reading more would block
                async for data in response.aiter_bytes():
                    wanted -= len(data)
                    if wanted <= 0:
                        break


@pytest.mark.parametrize(("agent", "requests"), [(None, 1700), (FORECASTER, 170)], indirect=["agent"])
@pytest.mark.long
async def test_a_thousand_streams_that_are_left_anywhere_leave_nothing(
    make_settings: MakeSettings, upstream: ScriptedUpstream, requests: int
) -> None:
    """Every upstream exchange is over, and all places are free: that number of streams can run at once."""
    places = 20
    arrivals = upstream.script = Arrivals(requests)

    settings = make_settings(max_streams=places, max_queue=1000, queue_timeout_s=60, log_level="warning")
    async with running(settings) as client:
        limit = anyio.CapacityLimiter(30)

        async def leave_in_turn(number: int) -> None:
            async with limit:
                await leave(client, arrivals, number)

        with anyio.fail_after(240):
            async with anyio.create_task_group() as group:
                for number in range(requests):
                    group.start_soon(leave_in_turn, number)
            for exchange in upstream.exchanges:
                await exchange.gone.wait()
        assert len(upstream.exchanges) >= requests * 3 // 5  # these certainly reach the upstream

        gate = upstream.script = Gate()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(places):
                    group.start_soon(lambda: client.post("/chat", json=REQUEST))
                while gate.arrivals < places:
                    await gate.arrived.wait()
                    gate.arrived.clear()
                gate.open.set()


# Clients that misbehave


CHAT = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"


@pytest.mark.parametrize(
    "sent", [b"", b"POST /ch", b"POST /chat HTTP/1.1\r\nHost: x\r\nX: ", CHAT, CHAT + b'{"mess'], ids=range(5)
)
async def test_a_request_that_does_not_come_is_given_up(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs, sent: bytes
) -> None:
    """The client sends nothing, part of a header or part of a body; Parley closes the connection."""
    async with running(make_settings(read_timeout_s=0.2), logs) as client:
        async with sending(client, sent) as (reader, _):
            with anyio.fail_after(10):
                assert await reader.read() == b""
        assert (await logs.line("connection_timed_out"))["awaited"] == "request"
    assert upstream.exchanges == []


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /chat HTTP/1.1\r\nX: " + b"x" * 70_000,
        b"POST /chat HTTP/1.1\r\n" + b"X: x\r\n" * 20_000,
        b"POST /" + b"x" * 70_000,
        b"\x16\x03\x01 hello",
        b"POST /chat HTTP/1.1\r\n\r\n",
        CHAT.replace(b"15", b"-1"),
    ],
    ids=range(6),
)
async def test_what_is_no_http_request_gets_the_error_that_all_get(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs, sent: bytes
) -> None:
    """The error has three sentences, a correlation ID and a log line; then the connection is closed."""
    async with running(make_settings(), logs) as client:
        async with sending(client, sent) as (reader, _):
            with anyio.fail_after(10):
                head, body = (await reader.read()).split(b"\r\n\r\n")
        line = await logs.line()
    assert head.startswith(b"HTTP/1.1 400 ")
    error = msgspec.json.decode(body, type=ErrorResponse)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert b"x-correlation-id: " + error.correlation_id.encode() in head
    assert (line["correlation_id"], line["status"]) == (error.correlation_id, 400)
    assert upstream.exchanges == []


async def test_what_is_no_http_request_does_not_get_into_an_answer(
    make_settings: MakeSettings, upstream: ScriptedUpstream
) -> None:
    """The answer continues to its end, and the refusal follows it."""
    gate = upstream.script = Gate()
    request = CHAT + b'{"message":"x"}'
    async with running(make_settings()) as client, sending(client, request + b"\x16\x03\x01 hello") as (reader, _):
        with anyio.fail_after(10):
            await gate.arrived.wait()
            gate.open.set()
            received = await reader.read()
    answered, _, refused = received.partition(b"\r\n0\r\n\r\n")
    assert b"event: done" in answered
    assert refused.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("keys", "pieces", "status", "code"),
    [
        (None, 1, 400, "invalid_request"),
        (None, 2, 400, "invalid_request"),
        (Secret("k" * 16), 1, 400, "invalid_request"),
        (Secret("k" * 16), 2, 401, "unauthorized"),
    ],
)
async def test_a_request_that_stops_being_http_is_refused_once(
    make_settings: MakeSettings, logs: Logs, keys: Secret | None, pieces: int, status: int, code: str
) -> None:
    """The handler that was about to answer causes no second response and no error; the request has one log line."""
    head, broken = CHAT.replace(b"Content-Length: 15", b"Transfer-Encoding: chunked"), b"no size\r\n"
    async with running(make_settings(api_keys=keys), logs) as client:
        async with sending(client, head + broken if pieces == 1 else head) as (reader, writer):
            if pieces == 2:
                await client.get("/health/live")  # by then, Parley is serving the request
                writer.write(broken)
            with anyio.fail_after(10):
                received = await reader.read()
        line = await logs.line()
    assert received.count(b"HTTP/1.1 ") == 1
    assert len(logs.lines("request")) == 1
    assert received.startswith(f"HTTP/1.1 {status} ".encode())
    assert (line["status"], line["error_code"]) == (status, code)
    assert f"x-correlation-id: {line['correlation_id']}".encode() in received
    assert not any(line["level"] == "error" for line in map(json.loads, logs.getvalue().splitlines()))


async def test_another_protocol_is_not_spoken(make_settings: MakeSettings, logs: Logs) -> None:
    """Parley ignores the upgrade request, and the log gives no advice about WebSockets."""
    upgrade = CHAT.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost")
    async with running(make_settings(), logs) as client, sending(client, upgrade + b'{"message":"x"}') as (reader, _):
        with anyio.fail_after(10):
            received = await reader.readuntil(b"0\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"event: done" in received
    assert "WebSocket" not in logs.getvalue()


async def test_a_request_that_waits_behind_another_has_its_deadline_when_its_turn_comes(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Half a request behind a whole one does not disturb that answer; its read timeout starts afterwards."""
    gate = upstream.script = Gate()
    settings = make_settings(read_timeout_s=0.1, hold_headers_s=0.05, heartbeat_s=0.05)
    async with running(settings, logs) as client:
        async with sending(client, CHAT + b'{"message":"x"}' + CHAT + b'{"mess') as (reader, _):
            with anyio.fail_after(10):
                for _ in range(6):
                    await reader.readuntil(b": ping\n")
                assert logs.lines("connection_timed_out") == []
                gate.open.set()
                received = await reader.read()
        assert (await logs.line("connection_timed_out"))["awaited"] == "request"
    assert b"event: done" in received
    assert b"HTTP/1.1" not in received


@BOTH
async def test_a_last_piece_that_is_not_read_holds_up_no_shutdown(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """For some of these sizes, only a little of the answer does not fit into the system's buffers."""
    sizes = range(40_000, 400_000, 20_000)

    async def script(exchange: Exchange) -> None:
        await answer("x" * int(exchange.message))(exchange)

    upstream.script = script
    with anyio.fail_after(20):
        async with running(make_settings(write_timeout_s=0.3), logs) as client, AsyncExitStack() as stack:
            for size in sizes:
                request = CHAT.replace(b"15", b"20") + b'{"message":"%6d"}' % size
                _, transport = await stack.enter_async_context(sending(client, request))
                transport.pause_reading()
            await logs.line(number=len(sizes))
            stack.pop_all()  # the clients stay connected and read nothing


async def endless(exchange: Exchange) -> None:
    """Send text for as long as Parley reads it."""
    await exchange.head()
    while not exchange.gone.is_set():
        await exchange.events(*[delta("word ")] * 100)


@BOTH
async def test_a_client_that_does_not_read_stops_the_model_and_is_cut_off(
    make_settings: MakeSettings, upstream: ScriptedUpstream, logs: Logs
) -> None:
    """Parley closes both the client's connection and the upstream's."""
    upstream.script = endless
    async with running(make_settings(write_timeout_s=0.5, log_level="info"), logs) as client:
        async with sending(client, CHAT + b'{"message":"x"}') as (_, transport):
            transport.pause_reading()
            exchange = await upstream.next_exchange()
            with anyio.fail_after(20):
                await exchange.gone.wait()
        assert (await logs.line("connection_timed_out"))["awaited"] == "client"
        assert (await logs.line())["outcome"] == "client_disconnected"


@BOTH
async def test_the_deadline_holds_while_the_client_does_not_read(
    make_settings: MakeSettings, agent: str | None, upstream: ScriptedUpstream
) -> None:
    """Parley closes the upstream's connection; a client that reads again gets all the text, then the error."""
    upstream.script = endless
    async with running(make_settings(request_timeout_s=2, write_timeout_s=60, log_level="info")) as client:
        closing = CHAT.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n")
        async with sending(client, closing + b'{"message":"x"}') as (reader, transport):
            transport.pause_reading()
            exchange = await upstream.next_exchange()
            with anyio.fail_after(20):
                await exchange.gone.wait()
                transport.resume_reading()
                received = await reader.read()
    body = b"".join(received.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2])  # the other lines are chunk sizes
    _, *texts, error = chunks = read_chunks(body)
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    text = "".join(text.text for text in texts if isinstance(text, TextChunk))
    assert isinstance(error, ErrorChunk)
    assert error.error.code is ErrorCode.REQUEST_TIMEOUT
    assert error.usage == with_tool(agent, Usage.estimate(text.count("word ")))
    assert text == "word " * text.count("word ")
