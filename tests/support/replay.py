"""The replay of a wire case: the script that sends its bytes."""

from __future__ import annotations

import asyncio
import time
import zlib
from contextlib import suppress
from email.utils import formatdate
from json import dumps
from typing import TYPE_CHECKING, Any, Final

from tests.support.wire_cases import REST, START, Format, WireCase

if TYPE_CHECKING:
    from parley.testing.exchange import Exchange

_CHUNK: Final = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1790000000, "model": "scripted-1"}
_USAGE: Final = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def _chunk(choice: dict[str, Any], **more: object) -> dict[str, Any]:
    return {**_CHUNK, "choices": [{"index": 0, **choice}], **more}


def _piece(**delta: str) -> dict[str, Any]:
    return _chunk({"delta": delta, "finish_reason": None})


_WORDS: Final[dict[str, list[object]]] = {
    "role": [_piece(role="assistant", content="")],
    "text": [_piece(content=piece) for piece in (START, *REST)],
    "start": [_piece(content=START)],
    "rest": [_piece(content=piece) for piece in REST],
    "stop": [_chunk({"delta": {}, "finish_reason": "stop"})],
    "usage": [{**_CHUNK, "choices": [], "usage": _USAGE}],
    "done": ["[DONE]"],
}
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}


class Replay:
    """A script of the upstream that replays a case, and counts the requests."""

    def __init__(self, case: WireCase) -> None:
        self.tries = 0
        self._case = case

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        self.tries += 1
        reply = _Reply(self._case.format, exchange)
        if await self._play(self._case.upstream, reply):
            await reply.end()

    async def _play(self, steps: list[Any], reply: _Reply) -> bool:
        """Run these steps; return whether the reply still has to be ended."""
        for step in steps:
            match step:
                case {"when": {"tries": tries}, "then": then}:
                    if self.tries <= tries:
                        return await self._play(then, reply)
                case {"when": {"has": parameter}, "then": then}:
                    if parameter in reply.exchange.json:
                        return await self._play(then, reply)
                case {"repeat": times, "steps": repeated}:
                    await self._play(repeated * times, reply)
                case "close":
                    reply.exchange.close()
                    return False
                case "reset":
                    reply.exchange.abort()
                    return False
                case _:
                    await reply.say(step)
        return True


class _Reply:
    """One response, sent byte by byte."""

    def __init__(self, format_: Format, exchange: Exchange) -> None:
        self.exchange = exchange
        self._format = format_
        self._framing: str | None = None
        name = format_.compressed
        self._compressor = zlib.compressobj(wbits=_WINDOW_BITS[name]) if name else None

    async def say(self, step: Any) -> None:
        """Send what a step describes."""
        match step:
            case {"wait": seconds}:
                await self._wait(seconds)
            case "hang":
                await self._wait(None)
            case {"raw": text}:
                self._framing = self._framing or ("none" if "HTTP/1.1 1" not in text else None)
                await self._send(text.encode())
            case {"head": head}:
                await self._head(**head)
            case {"status": _}:
                await self._whole(**step)
            case _:
                await self._body(_said(step, self._format))

    async def end(self) -> None:
        """End the body."""
        if self._compressor:
            await self._pieces(self._compressor.flush())
        if self._framing == "chunked":
            await self._send(b"0\r\n\r\n")
        if self._framing == "close":
            self.exchange.close()
        self.exchange.over.set()

    async def _whole(
        self,
        status: int,
        headers: dict[str, Any] | None = None,
        content_type: str = "application/json",
        body: str | None = None,
        json: object = None,
    ) -> None:
        content = dumps(json) if body is None else body
        length = {"Content-Length": str(len(content.encode()))}
        await self._head(
            status=status, content_type=content_type, framing="length", headers={**length, **(headers or {})}
        )
        await self._send(content.encode())

    async def _head(
        self,
        *,
        status: int = 200,
        http: str = "1.1",
        content_type: str | None = "text/event-stream; charset=utf-8",
        framing: str = "chunked",
        headers: dict[str, Any] | None = None,
    ) -> None:
        self._framing = framing
        lines = [f"HTTP/{http} {status} Scripted"]
        lines += [f"Content-Type: {content_type}"] if content_type else []
        lines += {"chunked": ["Transfer-Encoding: chunked"], "close": ["Connection: close"]}.get(framing, [])
        for name, value in (headers or {}).items():
            match value:
                case {"date_in_s": seconds}:
                    lines.append(f"{name}: {formatdate(time.time() + seconds, usegmt=True)}")
                case {"times": times, "long": size}:
                    lines += [f"{name}: {number}={'x' * size}" for number in range(times)]
                case _:
                    lines.append(f"{name}: {value}")
        await self._send("\r\n".join([*lines, "", ""]).encode())

    async def _body(self, data: bytes) -> None:
        if self._framing is None:
            await self._head()
        if self._compressor:
            data = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        await self._pieces(data)

    async def _pieces(self, data: bytes) -> None:
        size = self._format.pieces or len(data) or 1
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            await self._send(b"%x\r\n%b\r\n" % (len(piece), piece) if self._framing == "chunked" else piece)

    async def _send(self, data: bytes) -> None:
        if not self.exchange.gone.is_set():
            self.exchange.send_raw(data)
            await self.exchange.writer.drain()
            await asyncio.sleep(0)

    async def _wait(self, seconds: float | None) -> None:
        """Let time pass, unless Parley leaves."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.exchange.gone.wait(), seconds)


def _said(step: Any, format_: Format) -> bytes:
    """Return the bytes of the body that a step describes."""
    if isinstance(step, str):
        return b"".join(_event(payload, format_) for payload in _WORDS[step])
    fields = dict(step)
    match step:
        case {"body": text}:
            return str(text).encode()
        case {"hex": digits}:
            return bytes.fromhex(str(digits))
        case {"data": text}:
            return _event(text, format_)
        case {"event": payload}:
            return _event(payload, format_)
        case {"choice": _}:
            payload = _chunk(**fields)
        case {"delta": _} | {"reason": _}:
            payload = _chunk({"delta": fields.pop("delta", {}), "finish_reason": fields.pop("reason", None)}, **fields)
        case _:
            raise ValueError(f"no step of a wire case: {step!r}")
    return _event(payload, format_)


def _event(payload: object, format_: Format) -> bytes:
    text = payload if isinstance(payload, str) else dumps(payload, ensure_ascii=False, indent=format_.indent)
    return (format_.prefix + text.replace("\n", "\n" + format_.prefix) + format_.after).encode()
