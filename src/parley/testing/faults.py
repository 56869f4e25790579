"""The known faults of upstreams, each by name, as scripts for a scripted upstream."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from parley.testing.upstream import USAGE, answer, delta, hang, respond

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from parley.testing.exchange import Exchange, Script

ABC: Final = ("a", "b", "c")
MANY: Final = 100_000
UNICODE: Final = 'Zürich 東京 🎉 "quoted"\n\u2028 end'


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
    """Wait for these seconds, or until Parley closes the connection."""
    with suppress(TimeoutError):
        await asyncio.wait_for(exchange.gone.wait(), seconds)


async def ping(exchange: Exchange) -> None:
    """Send comments endlessly, and no text."""
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


def quoted(exchange: Exchange) -> str:
    """Return the request's message and key, which some upstreams quote in their errors."""
    return f"{exchange.message} {exchange.headers.get('authorization', '')}"


def refuse(status: int, **headers: str) -> Script:
    """Refuse the request with this HTTP status; the body quotes the request."""

    async def script(exchange: Exchange) -> None:
        await respond(status, echo(exchange), **headers)(exchange)

    return script


def echo(exchange: Exchange) -> dict[str, Any]:
    """Return an error that quotes the request in each of its fields."""
    return {"error": dict.fromkeys(("message", "type", "param", "code"), quoted(exchange))}


def too_long(**error: object) -> Script:
    """Refuse the request because it exceeds the model's context; `error` has fields for the error in the body."""

    async def script(exchange: Exchange) -> None:
        await respond(400, {"error": {"message": quoted(exchange), **error}})(exchange)

    return script


def say_quoted(before: bytes, after: bytes, content_type: str = "text/event-stream") -> Script:
    """Answer 200 with a body that quotes the request between these bytes."""

    async def script(exchange: Exchange) -> None:
        await say(before + quoted(exchange).encode() + after, content_type)(exchange)

    return script


async def error_in_band(exchange: Exchange) -> None:
    """Send an error in place of the first chunk."""
    await say(sse(echo(exchange)))(exchange)


async def error_in_band_after_text(exchange: Exchange) -> None:
    """Send an error in the middle of the answer, then more text."""
    await say(sse(*map(delta, ABC), echo(exchange), delta("d")))(exchange)


async def error_without_json(exchange: Exchange) -> None:
    """Refuse the request with status 500, and a body that quotes the request and is not a JSON object."""
    await respond(500, quoted(exchange))(exchange)


_STOP: Final = delta(finish_reason="stop")
_TOOL: Final = {
    "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "x", "arguments": "{}"}}]}}]
}

FAULTS: Final[Mapping[str, Script]] = {
    "none": answer(*ABC),
    # The upstream sends nothing, or sends it too late.
    "hang": hang,
    "headers_then_hang": after((), hang),
    "pings_only": after((), ping),
    "headers_late": headers_late,
    "text_late": text_late,
    "stall": after(ABC, hang),
    "stall_with_pings": after(ABC, ping),
    # The upstream breaks off.
    "reset": reset,
    "close": close,
    "headers_then_reset": after((), reset),
    "headers_then_close": after((), close),
    "reset_after_text": after(ABC, reset),
    "close_after_text": after(ABC, close),
    "no_reason": after(ABC, end),
    "no_reason_but_done": say(sse(*map(delta, ABC), "[DONE]")),
    "nothing": say(b""),
    "only_done": say(sse("[DONE]")),
    "role_then_end": say(sse({"choices": [{"delta": {"role": "assistant"}}]}, "[DONE]")),
    "reset_after_reason": after(ABC, reason_then_reset),
    "hang_after_reason": after(ABC, reason_then_hang),
    # The upstream sends something else.
    "html": say_quoted(b"<html>", b"</html>", "text/html"),
    "json": say(b'{"choices": []}', "application/json"),
    "malformed": say_quoted(b'data: {"choices": [', b"\n\n"),
    "malformed_after_text": say_quoted(sse(*map(delta, ABC)) + b"data: {", b"\n\n"),
    "not_utf8": say(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n' + sse(_STOP, "[DONE]")),
    "another_shape": say(sse({"choices": 5})),
    "error_in_band": error_in_band,
    "error_in_band_after_text": error_in_band_after_text,
    "cut_in_code_points": say_in_pieces(sse(delta(UNICODE), _STOP, "[DONE]"), 1),
    "cut_in_frames_with_crlf": say_in_pieces(sse(delta(UNICODE), _STOP, "[DONE]", end="\r\n\r\n"), 7),
    "tool_call": say(sse(_TOOL, delta(finish_reason="tool_calls"), "[DONE]")),
    # The upstream refuses the request.
    "301": refuse(301, location="/v1/elsewhere"),
    **{str(status): refuse(status) for status in (400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529)},
    "429_retry_after": refuse(429, retry_after="7"),
    "429_retry_after_absurd": refuse(429, retry_after="86400"),
    "429_retry_after_words": refuse(429, retry_after="soon"),
    "500_without_json": error_without_json,
    "503_retry_after": refuse(503, retry_after="7"),
    "context_length_openai": too_long(code="context_length_exceeded"),
    "context_length_llama_cpp": too_long(code=400, type="exceed_context_size_error"),
    "context_length_vllm": too_long(code=400, message="This model's maximum context length is 4096 tokens."),
    # The upstream answers in a way that is easy to misread.
    "length": answer(*ABC, finish_reason="length"),
    "content_filter": answer(*ABC, finish_reason="content_filter"),
    "no_usage": answer(*ABC, usage=None),
    "usage_negative": answer(*ABC, usage={"prompt_tokens": -7, "completion_tokens": -3, "total_tokens": -10}),
    "usage_absurd": answer(*ABC, usage=dict.fromkeys(USAGE, 10**400)),
    "empty": answer(),
    "empty_without_usage": answer(usage=None),
    "refusal": say(sse({"choices": [{"delta": {"refusal": "abc"}}]}, _STOP, "[DONE]")),
    "enormous_chunk": answer("x" * 900_000),
    "endless_line": say(b"data: " + b"x" * (2 << 20)),
    "many_tokens": say_in_pieces(sse(*[delta("x")] * MANY, _STOP, "[DONE]"), 65_536),
    # Two of three requests fail, to try retries by hand.
    "fails_twice": in_cycle(refuse(503), refuse(503), answer(*ABC)),
}
