"""The known faults of upstreams, each by name, with what Parley's client must receive.

Run as a program (`just faulty`), this module serves an upstream that shows the fault that the message names.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason, UsageSource
from tests.support import replay, wire_cases
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.upstream import USAGE, Exchange, Script, ScriptedUpstream, answer, delta, hang, respond

if TYPE_CHECKING:
    from collections.abc import Iterable

# Some upstreams quote the prompt and the key.
ECHO = {"error": {"message": f"{CANARY} {CANARY_KEY}", "type": CANARY, "param": CANARY, "code": CANARY}}
ABC = ("a", "b", "c")
MANY = 100_000
UNICODE = 'Zürich 東京 🎉 "quoted"\n\u2028 end'


@dataclass(frozen=True)
class Fault:
    """What the upstream does, and what the client must receive."""

    script: Script
    text: str | None = "abc"
    """The text that reaches the client; `None` if there is an HTTP error instead of a stream."""
    code: ErrorCode | None = None
    """The error; `None` if the answer is done."""
    finish_reason: FinishReason = FinishReason.STOP
    source: UsageSource = UsageSource.ESTIMATE
    """The source of the usage in the stream's last chunk."""
    retryable: bool = True
    retry_after_s: int | None = None
    upstream_status: int | None = None


def failing(script: Script, code: ErrorCode = ErrorCode.UPSTREAM_ERROR, **more: object) -> Fault:
    """Return a fault that gives no text."""
    return Fault(script, text=None, code=code, source=UsageSource.NONE, **more)  # type: ignore[arg-type]


def breaking(script: Script, code: ErrorCode = ErrorCode.UPSTREAM_TRUNCATED) -> Fault:
    """Return a fault that breaks off the answer after `abc`."""
    return Fault(script, code=code)


def status(number: int, code: ErrorCode = ErrorCode.UPSTREAM_ERROR, *, retryable: bool = True, **headers: str) -> Fault:
    """Return a refusal by HTTP status; its body quotes what it should not."""
    return failing(respond(number, ECHO, **headers), code, retryable=retryable, upstream_status=number)


def say(body: bytes, content_type: str = "text/event-stream") -> Script:
    """Answer 200 with these bytes."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(content_type=content_type)
        await exchange.write(body)
        await exchange.end()

    return script


def say_in_pieces(body: bytes, size: int) -> Script:
    """Answer 200 with these bytes, cut into pieces of this size without regard to characters."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for start in range(0, len(body), size):
            await exchange.write(body[start : start + size])
        await exchange.end()

    return script


def sse(*payloads: object, end: str = "\n\n") -> bytes:
    """Encode events; a string is sent as it is, and everything else as JSON."""
    texts = (payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False) for payload in payloads)
    return "".join(f"data: {text}{end}" for text in texts).encode()


def in_cycle(*scripts: Script) -> Script:
    """Run these scripts in turn, one for each request, over and over."""
    turns = cycle(scripts)

    async def script(exchange: Exchange) -> None:
        await next(turns)(exchange)

    return script


def after(texts: Iterable[str], then: Script) -> Script:
    """Stream these texts, then run this script."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.events(*(delta(text) for text in texts))
        await then(exchange)

    return script


async def pause(exchange: Exchange, seconds: float) -> None:
    """Let time pass, unless Parley leaves."""
    with suppress(TimeoutError):
        await asyncio.wait_for(exchange.gone.wait(), seconds)


async def ping(exchange: Exchange) -> None:
    """Send comments without end, and no text."""
    while not exchange.gone.is_set():
        await exchange.write(b": ping\n\n")
        await pause(exchange, 0.02)


async def reset(exchange: Exchange) -> None:
    """Break the connection with an RST."""
    exchange.abort()


async def close(exchange: Exchange) -> None:
    """Close the connection with a FIN, without ending the body."""
    exchange.close()


async def end(exchange: Exchange) -> None:
    """End the body properly."""
    await exchange.end()


async def headers_late(exchange: Exchange) -> None:
    """Wait before the headers."""
    await pause(exchange, 0.2)
    await answer(*ABC)(exchange)


async def text_late(exchange: Exchange) -> None:
    """Wait after the headers."""
    await exchange.head()
    await pause(exchange, 0.2)
    await exchange.events(*(delta(text) for text in ABC), delta(finish_reason="stop"), {"choices": [], "usage": USAGE})
    await exchange.end()


async def reason_then_reset(exchange: Exchange) -> None:
    """Send a finish reason, and break the connection before the usage."""
    await exchange.events(_STOP)
    exchange.abort()


async def reason_then_hang(exchange: Exchange) -> None:
    """Send a finish reason, and nothing more."""
    await exchange.events(_STOP)
    await exchange.gone.wait()


_TIMEOUT = ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT
_IDLE = ErrorCode.UPSTREAM_IDLE_TIMEOUT
_LIMIT = ErrorCode.UPSTREAM_RATE_LIMITED
_LONG = ErrorCode.CONTEXT_LENGTH_EXCEEDED
_COUNTED = UsageSource.UPSTREAM
_STOP = delta(finish_reason="stop")
_TOOL = {
    "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "x", "arguments": "{}"}}]}}]
}

FAULTS: dict[str, Fault] = {
    "none": Fault(answer(*ABC), source=_COUNTED),
    # The upstream sends nothing, or sends it too late.
    "hang": failing(hang, _TIMEOUT),
    "headers_then_hang": failing(after((), hang), _TIMEOUT),
    "pings_only": failing(after((), ping), _TIMEOUT),
    "headers_late": Fault(headers_late, source=_COUNTED),
    "text_late": Fault(text_late, source=_COUNTED),
    "stall": breaking(after(ABC, hang), _IDLE),
    "stall_with_pings": breaking(after(ABC, ping), _IDLE),
    # The upstream breaks off.
    "reset": failing(reset, ErrorCode.UPSTREAM_UNREACHABLE),
    "close": failing(close, ErrorCode.UPSTREAM_UNREACHABLE),
    "headers_then_reset": failing(after((), reset), ErrorCode.UPSTREAM_TRUNCATED),
    "headers_then_close": failing(after((), close), ErrorCode.UPSTREAM_TRUNCATED),
    "reset_after_text": breaking(after(ABC, reset)),
    "close_after_text": breaking(after(ABC, close)),
    "no_reason": breaking(after(ABC, end)),
    "no_reason_but_done": Fault(say(sse(*map(delta, ABC), "[DONE]")), finish_reason=FinishReason.UNKNOWN),
    "nothing": failing(say(b"")),
    "only_done": failing(say(sse("[DONE]"))),
    "role_then_end": failing(
        say(sse({"choices": [{"delta": {"role": "assistant"}}]}, "[DONE]")), ErrorCode.UPSTREAM_TRUNCATED
    ),
    "reset_after_reason": Fault(after(ABC, reason_then_reset)),
    "hang_after_reason": Fault(after(ABC, reason_then_hang)),
    # The upstream sends something else.
    "html": failing(say(b"<html>" + CANARY.encode() + b"</html>", "text/html")),
    "json": failing(say(b'{"choices": []}', "application/json")),
    "malformed": failing(say(b'data: {"choices": [' + CANARY.encode() + b"\n\n")),
    "malformed_after_text": breaking(
        say(sse(*map(delta, ABC)) + b"data: {" + CANARY.encode() + b"\n\n"), ErrorCode.UPSTREAM_ERROR
    ),
    "not_utf8": Fault(
        say(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n' + sse(_STOP, "[DONE]")), text="\ufffd"
    ),
    "another_shape": failing(say(sse({"choices": 5}))),
    "error_in_band": failing(say(sse(ECHO))),
    "error_in_band_after_text": breaking(say(sse(*map(delta, ABC), ECHO, delta("d"))), ErrorCode.UPSTREAM_ERROR),
    "cut_in_code_points": Fault(say_in_pieces(sse(delta(UNICODE), _STOP, "[DONE]"), 1), text=UNICODE),
    "cut_in_frames_with_crlf": Fault(
        say_in_pieces(sse(delta(UNICODE), _STOP, "[DONE]", end="\r\n\r\n"), 7), text=UNICODE
    ),
    "tool_call": failing(say(sse(_TOOL, delta(finish_reason="tool_calls"), "[DONE]")), retryable=False),
    # The upstream refuses the request.
    "301": status(301, retryable=False, location="/v1/elsewhere"),
    "400": status(400, retryable=False),
    "401": status(401, ErrorCode.UPSTREAM_AUTH, retryable=False),
    "403": status(403, ErrorCode.UPSTREAM_AUTH, retryable=False),
    "404": status(404, retryable=False),
    "408": status(408),
    "409": status(409),
    "422": status(422, retryable=False),
    "429": status(429, _LIMIT),
    "429_retry_after": failing(respond(429, ECHO, retry_after="7"), _LIMIT, upstream_status=429, retry_after_s=7),
    "429_retry_after_absurd": status(429, _LIMIT, retry_after="86400"),
    "429_retry_after_words": status(429, _LIMIT, retry_after="soon"),
    "500": status(500),
    "500_without_json": failing(respond(500, CANARY), upstream_status=500),
    "502": status(502),
    "503": status(503),
    "503_retry_after": failing(respond(503, ECHO, retry_after="7"), upstream_status=503, retry_after_s=7),
    "529": status(529),
    "context_length_openai": failing(
        respond(400, {"error": {"message": CANARY, "code": "context_length_exceeded"}}),
        _LONG,
        retryable=False,
        upstream_status=400,
    ),
    "context_length_llama_cpp": failing(
        respond(400, {"error": {"message": CANARY, "code": 400, "type": "exceed_context_size_error"}}),
        _LONG,
        retryable=False,
        upstream_status=400,
    ),
    "context_length_vllm": failing(
        respond(400, {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}}),
        _LONG,
        retryable=False,
        upstream_status=400,
    ),
    # The upstream answers in a way that is easy to misread.
    "length": Fault(answer(*ABC, finish_reason="length"), finish_reason=FinishReason.LENGTH, source=_COUNTED),
    "content_filter": Fault(
        answer(*ABC, finish_reason="content_filter"), finish_reason=FinishReason.CONTENT_FILTER, source=_COUNTED
    ),
    "no_usage": Fault(answer(*ABC, usage=None)),
    "usage_negative": Fault(answer(*ABC, usage={"prompt_tokens": -7, "completion_tokens": -3, "total_tokens": -10})),
    "usage_absurd": Fault(answer(*ABC, usage=dict.fromkeys(USAGE, 10**400))),
    "empty": Fault(answer(), text="", source=_COUNTED),
    "empty_without_usage": Fault(answer(usage=None), text="", source=UsageSource.NONE),
    "refusal": Fault(say(sse({"choices": [{"delta": {"refusal": "abc"}}]}, _STOP, "[DONE]"))),
    "enormous_chunk": Fault(answer("x" * 900_000), text="x" * 900_000, source=_COUNTED),
    "endless_line": failing(say(b"data: " + b"x" * (2 << 20))),
    "many_tokens": Fault(say_in_pieces(sse(*[delta("x")] * MANY, _STOP, "[DONE]"), 65_536), text="x" * MANY),
}


SCRIPTS = {name: fault.script for name, fault in FAULTS.items()} | {
    # Fails two of three times, to try retries by hand.
    "fails_twice": in_cycle(respond(503, ECHO), respond(503, ECHO), answer(*ABC))
}


async def show_named_fault(exchange: Exchange) -> None:
    """Show the fault that the last message names."""
    name = exchange.message.split()[-1]
    script = SCRIPTS.get(name)
    if script is None:
        cases = wire_cases.load()
        script = replay.Replay(cases[name]) if name in cases else SCRIPTS["none"]
    await script(exchange)


async def main() -> None:
    """Serve until Ctrl-C."""
    async with ScriptedUpstream(port=int(sys.argv[1])) as upstream:
        upstream.script = show_named_fault
        print(f"A faulty upstream at {upstream.url}. Name a fault in the message:\n{' '.join(SCRIPTS)}")  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
