"""The floods: answers that never end, or unpack to far more than was sent, each by name.

Run as a program, this module answers with the flood that the message names, or for the list of models, the path; an
agent must call its tool first. It prints its port to standard output. It is a separate process with blocking sockets,
so that it can send faster than Parley reads.
"""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
import urllib.parse
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Endless floods end at this size, to spare the machine.
MOST_BYTES = 200 << 20
_BLOCK = 1 << 16
LONG_TEXT = "x" * 900_000
PLAIN = "plain"
CALL = "call"


@dataclass(frozen=True)
class Flood:
    """What the upstream sends; each piece goes into its own segment, if the network allows it."""

    pieces: Callable[[], Iterator[bytes]]
    text: str | None = None
    """The whole answer, if there is one: Parley may return it, or refuse it for its length."""


def head(status: str = "200 OK", *headers: str, content_type: str = "text/event-stream") -> bytes:
    """Return status line and headers; unless a header says otherwise, the end of the connection ends the body."""
    return "\r\n".join([f"HTTP/1.1 {status}", f"content-type: {content_type}", *headers, "", ""]).encode()


HEAD = head()
CHUNKED = head("200 OK", "transfer-encoding: chunked")
JSON = head(content_type="application/json")
ERROR = head("500 Error", content_type="application/json")


def event(payload: object) -> bytes:
    """Encode an event; a string is sent as it is."""
    return b"data: %b\n\n" % (payload if isinstance(payload, str) else json.dumps(payload)).encode()


def delta(reason: str | None = None, **content: Any) -> bytes:
    """Encode a chunk of an answer."""
    return event({"choices": [{"index": 0, "delta": content, "finish_reason": reason}]})


WHOLE = delta(content="whole") + delta("stop")
LONG_EVENT = delta(content=LONG_TEXT) + delta("stop") + event("[DONE]")


def endless(start: bytes, unit: bytes, text: str | None = None) -> Flood:
    """Send `start`, and then `unit` over and over."""

    def pieces() -> Iterator[bytes]:
        yield start
        block = unit * max(1, _BLOCK // len(unit))
        for _ in range(MOST_BYTES // len(block)):
            yield block

    return Flood(pieces, text)


def bytewise(start: bytes, body: bytes, text: str | None = None) -> Flood:
    """Send a body one byte at a time, each in its own segment."""

    def pieces() -> Iterator[bytes]:
        yield start
        for number in range(len(body)):
            yield body[number : number + 1]

    return Flood(pieces, text)


def chunkwise(start: bytes, body: bytes, text: str | None = None) -> Flood:
    """Send a body in HTTP chunks of one byte, many per segment, and then the last chunk."""

    def pieces() -> Iterator[bytes]:
        yield start
        for number in range(0, len(body), _BLOCK):
            yield b"".join(b"1\r\n%c\r\n" % byte for byte in body[number : number + _BLOCK])
        yield b"0\r\n\r\n"

    return Flood(pieces, text)


def packed(start: bytes, unit: bytes, number: int) -> Flood:
    """Send a compressed body, despite `Accept-Encoding: identity`."""

    def pieces() -> Iterator[bytes]:
        data = gzip.compress(unit * number, 9)
        headers = f"\r\ncontent-encoding: gzip\r\ncontent-length: {len(data)}\r\n\r\n"
        yield start.removesuffix(b"\r\n\r\n") + headers.encode() + data

    return Flood(pieces)


def holding(unit: str) -> Flood:
    """Send this payload in event after event, over and over."""
    return endless(HEAD, event(unit))


_CALL = delta(
    "tool_calls",
    tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
)
_DEEP = "[" * 100_000 + "]" * 100_000
_DIGITS = "9" * 1_000_000
_MODELS = b'{"object":"list","data":['
_IN_CHUNKS = CHUNKED + b"%x\r\n%b\r\n" % (len(WHOLE), WHOLE)

FLOODS = {
    PLAIN: Flood(lambda: iter([HEAD, WHOLE, event("[DONE]")]), "whole"),
    CALL: Flood(lambda: iter([HEAD, _CALL, event("[DONE]")])),
    # The answer is compressed.
    "gzip of empty lines": packed(HEAD, b"data:\n", 10_000_000),
    "gzip of an error": packed(ERROR, b"x", 80_000_000),
    # The answer has no text.
    "empty objects": endless(HEAD, b"data: {}\n\n"),
    "blank lines": endless(HEAD, b"\n"),
    "data lines without data": endless(HEAD, b"data:\n"),
    "reasoning": endless(HEAD, delta(reasoning_content="thinking")),
    "a line": endless(HEAD + b"data: ", b"x"),
    "finish reasons": endless(HEAD, delta("stop"), ""),
    "a million choices": holding('{"choices":[' + "{}," * 340_000 + "{}]}"),
    "nested error": holding(f'{{"choices":[],"error":{_DEEP}}}'),
    "nested in an unknown field": holding(f'{{"choices":[],"x":{_DEEP}}}'),
    "digits in an error": holding(f'{{"error":{{"code":{_DIGITS}}}}}'),
    # The answer is cut into single bytes.
    "a long event in segments of a byte": bytewise(HEAD, LONG_EVENT, LONG_TEXT),
    "a long event in chunks of a byte": chunkwise(CHUNKED, LONG_EVENT, LONG_TEXT),
    "chunks of a byte": endless(CHUNKED, b"1\r\nx\r\n"),
    # HTTP itself does not end.
    "a chunk's extension": endless(CHUNKED + b"5;x=", b"x"),
    "chunks with extensions": endless(CHUNKED, b"1;" + b"x" * 1000 + b"\r\n:\r\n"),
    "trailers": endless(_IN_CHUNKS + b"0\r\n", b"x-trailer: 1\r\n", "whole"),
    "100 Continue": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "line ends before the answer": endless(b"", b"\r\n"),
    # The answer has text.
    "text": endless(HEAD, delta(content="word ")),
    "a MB of text at a time": endless(HEAD, delta(content="x" * 1_000_000)),
    # The answer calls tools, for agents that have some.
    "arguments": endless(HEAD, delta(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": "xx"}}])),
    "a MB of arguments at a time": endless(
        HEAD, delta(tool_calls=[{"index": 0, "function": {"arguments": "x" * 1_000_000}}])
    ),
    "pieces of tool calls that hold nothing": endless(HEAD, delta(tool_calls=[{}] * 100)),
    "a million tool calls": holding('{"choices":[{"delta":{"tool_calls":[' + "{}," * 340_000 + "{}]}}]}"),
    # The answer continues after its end.
    "chunks after DONE": endless(_IN_CHUNKS + b"e\r\ndata: [DONE]\n\n\r\n", b"1\r\nx\r\n", "whole"),
    "comments after the finish reason": endless(HEAD + WHOLE, b":\n\n", "whole"),
    # The answer is an error.
    "an error": endless(ERROR, b"x"),
    "an error in chunks of a byte": endless(head("500 Error", "transfer-encoding: chunked"), b"1\r\nx\r\n"),
    # The answer is the list of models.
    "models": endless(JSON + _MODELS, b'{"id":"x"},'),
    "models in chunks of a byte": endless(CHUNKED, b"1\r\nx\r\n"),
    "gzip of models": packed(JSON, b'{"id":"x"},', 8_000_000),
    "100 Continue before models": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}

OF_TOOLS = [name for name in FLOODS if "tool" in name or "arguments" in name]


@contextmanager
def flooding() -> Iterator[str]:
    """Run the upstream that sends floods in its own process; yield its URL, without the flood's name."""
    with Popen([sys.executable, "-m", "tests.support.floods"], stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, suppress(OSError, ValueError):
        request = connection.makefile("rb")
        path = request.readline().split()[1].decode()
        size = 0
        while line := request.readline().strip().lower():
            if line.startswith(b"content-length:"):
                size = int(line[15:])
        body = request.read(size)
        if path.endswith("/models"):
            name = urllib.parse.unquote(path.split("/")[1])
        else:
            request = json.loads(body)
            name = [turn["content"] for turn in request["messages"] if turn["role"] == "user"][-1]
            if "tools" in request and request["messages"][-1]["role"] != "tool" and name not in OF_TOOLS:
                name = CALL
        for piece in FLOODS.get(name, FLOODS[PLAIN]).pieces():
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


def main() -> None:
    """Serve until the process is killed."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        while True:
            threading.Thread(target=_serve, args=listener.accept()[:1], daemon=True).start()


if __name__ == "__main__":
    main()
