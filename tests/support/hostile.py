"""Hostile traffic: requests and upstream responses with a canary in every place that can hold text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from parley.testing.faults import FAULTS, after, close, end, reset, say, sse
from parley.testing.upstream import answer, delta, hang, respond
from parley.wire.schema import MAX_BODY_BYTES
from tests.support.scripts import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parley.testing.exchange import Exchange, Script
    from tests.support.canaries import Canaries

# Unescaped, these forge lines and colours: line ends, ANSI and C1 sequences, a text direction override.
ODD = "\"'\\ \n\r\x1b[31m\x07\x7f\x85\x9b31m\u2028\u2029\u202e\ufeff 東\U0001f389"

OPERATIONS = ("/chat", "/chat/complete")
PAGES = (
    "/health/live",
    "/health/ready",
    "/info",
    "/metrics",
    "/schema",
    "/schema/openapi.json",
    "/schema/openapi.yaml",
)
CALLERS = ("a caller's key", "another caller's key")
_HEADERS = (
    "Accept",
    "Accept-Language",
    "Baggage",
    "Cookie",
    "Forwarded",
    "If-None-Match",
    "Origin",
    "Proxy-Authorization",
    "Referer",
    "Traceparent",
    "Tracestate",
    "User-Agent",
    "X-API-Key",
    "X-Correlation-ID",  # its value is not a valid id
    "X-Custom",
    "X-Forwarded-For",
    "X-Request-ID",
)

Request = tuple[str, str, dict[str, Any]]
_CLOSE = "Host: x\r\nConnection: close\r\n"


def headers(canaries: Canaries, caller: str = CALLERS[0]) -> dict[str, str]:
    """Return a request's headers; the key is a known one, as without it Parley would look at nothing else."""
    return {"Authorization": f"Bearer {canaries[caller]}"} | {
        name: f"{canaries[f'the header {name}']}!" for name in _HEADERS
    }


def chat(canaries: Canaries, fault: str, **fields: object) -> dict[str, object]:
    """Return a request's body; its message names a fault."""
    history = [{"role": role, "content": canaries[f"the {role}'s turn"] + ODD} for role in ("user", "assistant")]
    return {"message": f"{canaries['the message']}{ODD} {fault}", "history": history, **fields}


def requests(canaries: Canaries) -> Iterator[Request]:
    """Yield requests for every path, with every method and every invalid body: method, path, httpx's options."""
    path, method = canaries["the path"], canaries["the method"]
    unknown = (f"/{path}", f"/chat/{path}", f"/schema/{path}", f"/%0d%0a%1b[31m{path}", f"/%00{path}")
    for there in (*OPERATIONS, *PAGES, *unknown):
        for how in ("GET", "HEAD", "POST", "PUT", "TRACE", method):
            yield how, there, {}
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": canaries["the preflight"]}
        yield "OPTIONS", there, {"headers": asked}
    for there in OPERATIONS:
        for body in _wrong_bodies(canaries):
            yield "POST", there, {"content": body, "headers": {"Content-Type": "application/json"}}
        for content_type in (f"text/{canaries['the type']}", f"application/json; charset={canaries['the charset']}"):
            yield "POST", there, {"content": canaries["a plain body"], "headers": {"Content-Type": content_type}}
        for key in (f"Bearer {canaries['a wrong key']}", f"Basic {canaries['a password']}", canaries["no scheme"]):
            yield "POST", there, {"json": chat(canaries, "none"), "headers": {"Authorization": key}}
        yield "POST", there, {"files": {canaries["a part's name"]: (canaries["a file's name"], canaries["a part"])}}
        yield "POST", there, {"data": {canaries["a form's field"]: canaries["a form's value"]}}


def _wrong_bodies(canaries: Canaries) -> Iterator[bytes]:
    text = canaries["a wrong body"]
    yield from (text.encode(), f'{{"message": "{text}'.encode(), text.encode("utf-16"), b"[" * 5000 + text.encode())
    yield f'{{"message": "{text}'.encode() + b'\xff"}'
    yield f'"{text}"'.encode()
    for wrong in (
        {"message": {text: text}},
        {"message": [text]},
        {"message": f"{text}\0"},
        {"message": text.ljust(32_001, ".")},
        {"message": text.ljust(MAX_BODY_BYTES + 1, ".")},
        {"message": "Hi", f"{text} ": text},
        {"message": "Hi", text.ljust(41, "x"): text},
        {"message": "Hi", f"{text}{ODD}": text},
        {"message": "Hi", "timeout_s": text},
        {"message": "Hi", "max_output_tokens": text},
        {"message": "Hi", "history": text},
        {"message": "Hi", "history": [{"role": text, "content": text}]},
        {"message": "Hi", "history": [{"role": "user", "content": f"{text}\0"}]},
        {"message": "Hi", "history": [{"role": "user", "content": text, f"{text} ": text}]},
    ):
        yield json.dumps(wrong).encode()


def bytes_of_requests(canaries: Canaries) -> Iterator[bytes]:
    """Yield data that is not HTTP, or barely: each on its own connection, which Parley must close."""
    text = canaries["what is no HTTP"]
    yield f"{text}\r\n\r\n".encode()
    yield f"GET /{text} HTTP/9.9\r\n\r\n".encode()
    yield f"GET /{text}".encode()  # nothing more follows
    yield f"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{text}".encode()  # nothing more follows
    # In the request line and in headers: one or more bytes that are not allowed there.
    for odd in ("\n", "\r", "\x1b[31m", "\0", "\x7f", "\x85", "\x9b", "\u2028", "\r\n ", "x" * (1 << 20)):
        forged = f'{canaries["a forged correlation id"]}{odd}{{"event":"forged"}}'
        yield f"GET /health/live HTTP/1.1\r\n{_CLOSE}X-Correlation-ID: {forged}\r\n\r\n".encode()
        yield f"GET /health/live HTTP/1.1\r\n{_CLOSE}{forged}: x\r\n\r\n".encode()
        yield f"GET /{forged}?{forged} HTTP/1.1\r\n{_CLOSE}\r\n".encode()
        yield f"{forged} /chat HTTP/1.1\r\n{_CLOSE}\r\n".encode()
    text = canaries["a header that steers HTTP"]
    for header in (
        f"Content-Length: {text}",
        f"Transfer-Encoding: {text}",
        f"Expect: {text}",
        f"Host: {text}",
        f"Connection: upgrade, {text}\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {text}\r\nSec-WebSocket-Version: 13",
        f"Connection: upgrade\r\nUpgrade: {text}\r\nHTTP2-Settings: {text}",
        f"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{text}\r\n{text}",
    ):
        yield f"POST /chat HTTP/1.1\r\n{_CLOSE}{header}\r\n\r\n".encode()


def scripts(canaries: Canaries) -> dict[str, Script]:
    """Return all faults by name: those of the matrix, and more that put a canary into every other place."""
    words, text = canaries["the upstream's words"] + ODD, canaries["the answer's text"]

    def say_raw(data: str) -> Script:
        async def script(exchange: Exchange) -> None:
            exchange.writer.write(data.encode())
            exchange.close()

        return script

    def quoted(exchange: Exchange) -> dict[str, object]:
        """Quote the whole request, including its key, as some upstreams do."""
        quote = f"{words} {exchange.path} {exchange.headers} {exchange.body.decode()}"
        return {"error": {"message": quote, "type": quote, "param": quote, "code": quote}}

    def quote_in_band(*texts: str) -> Script:
        return after(texts, lambda exchange: exchange.events(quoted(exchange)))

    def refuse(status: int) -> Script:
        async def script(exchange: Exchange) -> None:
            await respond(status, quoted(exchange), retry_after=canaries["the upstream's Retry-After"])(exchange)

        return script

    more = {
        **{f"quotes_the_request_with_{status}": refuse(status) for status in (301, 400, 401, 404, 429, 500, 503)},
        "quotes_the_request_in_band": quote_in_band(),
        "quotes_the_request_after_text": quote_in_band(text),
        **{f"text_then_{then.__name__}": after((text + ODD,), then) for then in (reset, close, end, hang)},
        "text": answer(text + ODD),
        "is_no_http": say_raw(words),
        "reason_phrase": say_raw(f"HTTP/1.1 500 {text}\r\nContent-Length: 0\r\n\r\n"),
        "header_without_colon": say_raw(f"HTTP/1.1 200 OK\r\n{text}\r\n\r\n"),
        "chunk_without_size": say_raw(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{text}\r\n"),
        "encoding": say_raw(f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 99\r\n\r\n{text}"),
        "media_type": say(words.encode(), f"text/{text}"),
        "finish_reason": say(sse(delta("a"), delta(finish_reason=words))),
        "tool": say(sse({"choices": [{"delta": {"tool_calls": [{"function": {"name": words}}]}}]}, "[DONE]")),
        **{f"calls_the_{name}": call(name, json.dumps({"about": text})) for name in ("telling_tool", "failing_tool")},
        "trips_the_guardrail": answer(text),
        "prompt_filtered": respond(400, {"error": {"message": words, "code": "content_filter", "param": text}}),
        "role": say(sse({"id": words, "model": words, "choices": [{"delta": {"role": words, "content": "a"}}]})),
        "usage_in_words": say(sse(delta("a"), {"choices": [], "usage": {"prompt_tokens": words}})),
        "error_in_a_word": say(sse({"error": words})),
        "comment": say(f": {text}\nevent: {text}\nid: {text}\ndata: {text}\n\n".encode()),
    }
    return {**FAULTS, **more}
