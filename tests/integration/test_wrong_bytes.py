"""Bytes that no parser expects, in each place of an upstream's response: they never cause an error of Parley's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parley.chat.errors import ErrorCode
from parley.testing.faults import pause, say, say_in_pieces, sse
from parley.testing.upstream import ScriptedUpstream, delta
from parley.wire.errors import STATUS
from parley.wire.schema import DoneChunk, ErrorChunk, TextChunk
from tests.support.canaries import CANARY
from tests.support.out_of_turn import sized
from tests.support.running import problem, running, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from parley.settings import Settings
    from parley.testing.exchange import Exchange, Script
    from tests.support.logs import Logs

REQUEST = {"message": CANARY}
STOP = delta(finish_reason="stop")

VALUES = {
    "arrays nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "objects nested 100,000 deep": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
    "arrays nested 1,100 deep": b"[" * 1100 + b"]" * 1100,
    "arrays that do not close": b"[" * 100_000,
    "a million digits": b"9" * 1_000_000,
    "5,000 digits": b"9" * 5000,
    "-5,000 digits": b"-" + b"9" * 5000,
    "a float of 100,000 digits": b"0." + b"9" * 100_000,
    "an infinite float": b"1e999999999",
    "a lone high surrogate": rb'"\ud83d"',
    "a lone low surrogate": rb'"\udc00 x"',
    "surrogates in the wrong order": rb'"\udc00\ud83d"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "invalid UTF-8": b'"\xff\xfe"',
    "cut UTF-8": b'"\xe2\x82"',
    "overlong UTF-8": b'"\xc0\x80"',
    "a NUL": b'"\x00"',
    "an escaped NUL": rb'"\u0000"',
    "a bare NaN": b"NaN",
    "nothing": b"",
}
PLACES = {
    "the payload": b"%b",
    "the choices": b'{"choices":%b}',
    "a choice": b'{"choices":[%b]}',
    "the index": b'{"choices":[{"index":%b,"delta":{"content":"b"}}]}',
    "the delta": b'{"choices":[{"delta":%b}]}',
    "the content": b'{"choices":[{"delta":{"content":%b}}]}',
    "the refusal": b'{"choices":[{"delta":{"refusal":%b}}]}',
    "the reasoning": b'{"choices":[{"delta":{"reasoning_content":%b}}]}',
    "the tool calls": b'{"choices":[{"delta":{"tool_calls":%b}}]}',
    "the finish reason": b'{"choices":[{"delta":{},"finish_reason":%b}]}',
    "the usage": b'{"choices":[],"usage":%b}',
    "a count": b'{"choices":[],"usage":{"prompt_tokens":%b}}',
    "the error": b'{"error":%b}',
    "the error's message": b'{"error":{"message":%b}}',
    "the error's code": b'{"error":{"code":%b,"type":%b}}',
    "an unknown field": b'{"choices":[],"x":%b}',
    "a key": b'{"choices":[],%b:1}',
}
HEADERS = {
    "Retry-After of 5,000 digits": b"retry-after: " + b"9" * 5000,
    "Retry-After of invalid UTF-8": b"retry-after: \xff\xfe",
    "Retry-After of other digits": "retry-after: \u0661\u0662".encode(),
    "Retry-After of a superscript": "retry-after: \u00b2".encode("latin-1"),
    "Retry-After below 0": b"retry-after: -1",
    "Retry-After of a fraction": b"retry-after: 1.5",
    "Retry-After of nothing": b"retry-after:",
    "a request id of invalid UTF-8": b"x-request-id: \xff\xfe",
    "a type of invalid UTF-8": b"content-type: text/\xff; charset=\xfe",
    "an unknown charset": b"content-type: application/json; charset=none",
    "a cookie of invalid UTF-8": b"set-cookie: \xff=\xfe; expires=\xff",
    "a location of invalid UTF-8": b"location: http://[\xff",
    "a link that is none": b"link: <http://[>; rel=x",
}
STATUSES = {
    "400 Bad Request": ErrorCode.UPSTREAM_ERROR,
    "401 Unauthorized": ErrorCode.UPSTREAM_AUTH,
    "429 Too Many Requests": ErrorCode.UPSTREAM_RATE_LIMITED,
    "500 Error": ErrorCode.UPSTREAM_ERROR,
}


def send(data: bytes) -> Script:
    """Return a script that answers with these bytes."""

    async def script(exchange: Exchange) -> None:
        exchange.send_raw(data)

    return script


def fill(place: bytes, value: bytes) -> bytes:
    """Return the place with the value in it."""
    return place.replace(b"%b", value)


async def ask(client: httpx.AsyncClient, path: str) -> tuple[str, ErrorCode | None]:
    """Return the text, and the error code if the answer did not complete."""
    response = await client.post(path, json=REQUEST)
    if response.status_code != 200:
        error = problem(response)
        assert response.status_code == STATUS[error.code]
        return "", error.code
    if path != "/chat":
        return response.json()["text"], None
    chunks: list[Any] = await stream(client, REQUEST)
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))
    assert isinstance(chunks[-1], DoneChunk | ErrorChunk)
    return text, chunks[-1].error.code if isinstance(chunks[-1], ErrorChunk) else None


@pytest.mark.parametrize("place", PLACES)
async def test_a_value_that_no_parser_expects_is_the_upstreams_error(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, place: str
) -> None:
    """Parley may also ignore the value, if no text is lost."""
    for name, value in VALUES.items():
        wrong = b"data: " + fill(PLACES[place], value) + b"\n\n"
        for before, path in (("", "/chat"), ("a", "/chat/complete")):
            upstream.script = say((sse(delta(before)) if before else b"") + wrong + sse(delta("c"), STOP, "[DONE]"))
            with anyio.fail_after(60):
                text, code = await ask(client, path)
            if code is None:
                assert (text[:1], text[-1:]) == (before or text[:1], "c"), name
            else:
                assert code is ErrorCode.UPSTREAM_ERROR, name
    assert not logs.lines("unexpected_error")


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("place", ["the payload", "the error", "the error's message", "the error's code", "a key"])
async def test_a_refusal_that_no_parser_expects_is_told_by_its_status(
    make_settings: Callable[..., Settings], upstream: ScriptedUpstream, logs: Logs, place: str, status: str
) -> None:
    """This also holds if the upstream's text is logged."""
    async with running(make_settings(log_upstream_text=True), logs) as client:
        for name, value in VALUES.items():
            upstream.script = send(sized(fill(PLACES[place], value), status, "application/json"))
            with anyio.fail_after(60):
                assert await ask(client, "/chat") == ("", STATUSES[status]), name
    assert not logs.lines("unexpected_error")


@pytest.mark.parametrize("header", HEADERS)
async def test_a_header_that_no_parser_expects_is_not_an_error_of_parleys_own(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, logs: Logs, header: str
) -> None:
    """The status decides for an error response; a 200 gives the answer or `upstream_error`."""
    answers = {"200 OK": {("abc", None), ("", ErrorCode.UPSTREAM_ERROR)}}
    for status, right in (answers | {status: {("", code)} for status, code in STATUSES.items()}).items():
        response = sized(sse(delta("abc"), STOP, "[DONE]"), status)
        upstream.script = send(response.replace(b"\r\n", b"\r\n" + HEADERS[header] + b"\r\n", 1))
        with anyio.fail_after(60):
            assert await ask(client, "/chat") in right, status
    assert not logs.lines("unexpected_error")


@pytest.mark.parametrize("line", [b": \xff\xfe\xed\xa0\x80\n", b"event: \xff\n", b"\xff: \xff\n", b"id: \x00\n"])
async def test_lines_that_nobody_reads_may_hold_anything(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, line: bytes
) -> None:
    """Such lines are comments and fields other than `data`."""
    upstream.script = say(line + sse(delta("a")) + line + line + sse(delta("bc"), STOP, "[DONE]"))
    assert await ask(client, "/chat") == ("abc", None)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100_000])
async def test_a_byte_order_mark_takes_nothing_from_the_text(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, size: int
) -> None:
    """An event stream may begin with one."""
    upstream.script = say_in_pieces(b"\xef\xbb\xbf" + sse(delta("a"), delta("bc"), STOP, "[DONE]"), size)
    for path in ("/chat", "/chat/complete"):
        assert await ask(client, path) == ("abc", None)


def choice(index: int | None, text: str | None = None, reason: str | None = None) -> dict[str, Any]:
    """Return a choice of a chunk."""
    made = {"delta": {} if text is None else {"content": text}, "finish_reason": reason}
    return made if index is None else {"index": index, **made}


CHOICES = {
    "1 before 0 in a chunk": [[choice(1, "x"), choice(0, "abc")], [choice(1, None, "length"), choice(0, None, "stop")]],
    "1 before 0": [[choice(1, "x")], [choice(0, "abc")], [choice(1, None, "length")], [choice(0, None, "stop")]],
    "1 ends first": [[choice(0, "a"), choice(1, "x", "length")], [choice(0, "bc")], [choice(0, None, "stop")]],
    "1 ends last": [[choice(0, "abc", "stop"), choice(1, "x")], [choice(1, "y")], [choice(1, None, "length")]],
    "1 ends in a way that is none": [[choice(1, None, "tool_calls")], [choice(0, "abc", "stop")]],
    "both by turns": [[choice(index, text)] for text in "abc" for index in (0, 2, 1)] + [[choice(0, "", "stop")]],
    "text and refusal": [[{"index": 0, "delta": {"content": "ab", "refusal": "c"}}], [choice(0, None, "stop")]],
    "a message": [[{"index": 0, "message": {"content": "abc"}, "finish_reason": "stop"}]],
    "a message that repeats": [[choice(0, "abc")], [{"message": {"content": "abc"}, "finish_reason": "stop"}]],
    "no index": [[choice(None, "abc")], [choice(None, None, "stop")]],
}


@pytest.mark.parametrize("name", CHOICES)
async def test_only_the_choice_that_was_asked_for_counts(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, name: str
) -> None:
    """Only its text and its finish reason are used."""
    upstream.script = say(sse(*({"choices": choices} for choices in CHOICES[name]), "[DONE]"))
    for path in ("/chat", "/chat/complete"):
        assert await ask(client, path) == ("abc", None)
    response = await client.post("/chat/complete", json=REQUEST)
    assert response.json()["finish_reason"] == "stop"


@pytest.mark.parametrize("index", [0, 1])
async def test_an_answer_of_other_choices_only_is_no_answer(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, index: int
) -> None:
    """Text of other choices does not count, whichever choice has the finish reason."""
    upstream.script = say(sse({"choices": [choice(1, "x")]}, {"choices": [choice(index, None, "stop")]}, "[DONE]"))
    text, code = await ask(client, "/chat")
    assert text == ""
    assert code in {ErrorCode.UPSTREAM_TRUNCATED, ErrorCode.UPSTREAM_ERROR}


@pytest.mark.parametrize("ending", [(), ("[DONE]",), (STOP, "[DONE]")], ids=["nothing", "done", "stop and done"])
@pytest.mark.parametrize("delays_s", [(0,), (0.9,), (1.5,), (4,), (0.9, 0.9, 0.9), (0, 1.5)])
async def test_text_after_the_finish_reason_is_not_lost_under_a_done(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, delays_s: tuple[float, ...], ending: tuple[object, ...]
) -> None:
    """Either the text is sent, or the answer ends with an error."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(delta("abc"), STOP)
        for delay_s in delays_s:
            await pause(exchange, delay_s)
            await exchange.events(delta("d"))
        await exchange.events(*ending)
        await exchange.end()

    upstream.script = script
    for path in ("/chat", "/chat/complete"):
        text, code = await ask(client, path)
        assert code is not None or text == "abc" + "d" * len(delays_s)
