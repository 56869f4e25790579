"""The benchmark's upstream: answers `N tokens` or `N tokens at R/s`, as the request asks, at little cost."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import uvloop

_ORDER = re.compile(rb"(\d+) tokens(?: at (\d+)/s)?")
_CHUNK = {
    "id": "chatcmpl-Bx7Q2mZkT9vRw4LhN8sYp3",
    "object": "chat.completion.chunk",
    "created": 1763700000,
    "model": "bench-1",
    "service_tier": "default",
    "system_fingerprint": "fp_b28b39ffa8",
}


def _event(delta: dict[str, Any] | None, finish_reason: str | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    return _piece(b"data: " + json.dumps({**_CHUNK, "choices": choices, **more}, separators=(",", ":")).encode())


def _piece(line: bytes) -> bytes:
    return b"%x\r\n%b\n\n\r\n" % (len(line) + 2, line)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_ROLE = _event({"role": "assistant", "content": "", "refusal": None})
_TOKEN = _event({"content": "word "})
_STOP = _event({}, "stop")


def _end(tokens: int) -> bytes:
    usage = _event(None, usage={"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens})
    return _STOP + usage + _piece(b"data: [DONE]") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection: each token is a separate write, and bursts take turns with those of all other connections."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = b""
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._answer: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport for the answers."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request when it is complete."""
        self._request += data
        head, end, body = self._request.partition(b"\r\n\r\n")
        announced = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if end and len(body) >= (int(announced[1]) if announced else 0):
            self._request = b""
            order = _ORDER.search(body)
            if order is None:  # the readiness check
                self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                return
            self._answer = self._loop.create_task(self._stream(int(order[1]), int(order[2] or 0)))

    async def _stream(self, tokens: int, rate: int) -> None:
        self._transport.write(_HEAD + _ROLE)
        started = self._loop.time()
        for number in range(1, tokens + 1):
            self._transport.write(_TOKEN)
            await asyncio.sleep(started + number / rate - self._loop.time() if rate else 0)
            await self._can_write.wait()
        self._transport.write(_end(tokens))

    def pause_writing(self) -> None:
        """Wait until the reader has caught up."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """Continue to write."""
        self._can_write.set()

    def connection_lost(self, _: Exception | None) -> None:
        """Stop the answer."""
        self._can_write.set()
        if self._answer:
            self._answer.cancel()


async def main() -> None:
    """Serve on the given port until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
