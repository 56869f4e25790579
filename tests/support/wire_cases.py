"""Owns the wire cases: what real upstreams send, as data in `tests/wire_cases/`, and the script that replays it.

Each file holds the cases of one kind. A case without `seen` is ours: a shape like those that were seen. `upstream` is
the list of steps that answer one request:

    role, stop, usage, done     an event: the opening one, a finish reason, the counts 9/4/13, `[DONE]`
    text; start, rest           events with the whole text of `ANSWER`; with its first word, and with what follows
    {delta: …, reason: …, …}    an event whose choice 0 has this delta and this finish reason; more are the event's
    {choice: …, …}              an event whose choice 0 has these fields
    {event: …}, {data: text}    an event of this JSON; of this text
    {body: text}, {hex: digits} these bytes of the body, as they are
    {raw: text}                 these bytes outside of the body
    {head: …}                   status line and headers, if not those of a stream: status, http, content_type, headers,
                                framing (`close` for a body that only the close ends)
    {status: …, …}              a whole response: json or body, content_type, headers
    {wait: seconds}, hang       silence
    close, reset                the end of the connection, without the end of the body; otherwise the body ends last
    {repeat: times, steps: …}
    {when: …, then: …}          an answer of its own for the first tries (`tries`) or if the request has a parameter
                                (`has`)

`format` says how events are written: `prefix` and `after` each, `indent` of their JSON; and how the body is sent:
`pieces` of so many bytes, `compressed`.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from tests.support.upstream import Exchange

_FOLDER: Final = Path(__file__).parents[1] / "wire_cases"
_ANY: Final = "*"

START: Final = "Mostly"
REST: Final = (" blue,", " some grey.")
ANSWER: Final = START + "".join(REST)
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

_OneOrMore = str | list[str]


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must come of a case; a list names alternatives, and what is not named may be anything.

    With both `done` and `error`, either will do.
    """

    done: _OneOrMore = ()  # type: ignore[assignment]  # a default has to be immutable
    """The finish reason."""
    error: _OneOrMore = ()  # type: ignore[assignment]
    """The code."""
    text: str | None = None
    """`*` for any. Unset: all of `ANSWER` if the answer is done, anything if it failed."""
    reasoning: str | None = None
    """What the model thought, for a request that asks for it."""
    usage: _OneOrMore = _ANY
    """As `input/output/total`, with `cached=` and `reasoning=` after it; `none` if the upstream did not count."""
    retryable: bool | None = None
    retry_after_s: int | list[int] | msgspec.UnsetType | None = msgspec.UNSET
    detail: str = ""
    """A part of it."""
    tries: int | list[int] = ()  # type: ignore[assignment]
    """The requests that the upstream receives, with two retries."""
    tries_again: int | None = None
    """The same for a later request, if it differs."""

    @property
    def whole_text(self) -> str:
        """The text that a reader who understands everything finds."""
        return ANSWER if self.text is None else self.text


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events are written, and how the body is sent."""

    prefix: str = "data: "
    after: str = "\n\n"
    indent: int | None = None
    pieces: int | None = None
    compressed: str | None = None


class WireCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One shape of an upstream's answer."""

    name: str
    seen: str = ""
    """Where; empty if it is ours."""
    upstream: list[str | dict[str, Any]]
    expect: Expected
    format: Format = Format()
    settings: dict[str, Any] = {}
    kind: str = ""
    """The file that it stands in."""

    @property
    def has_an_answer(self) -> bool:
        """Whether some reader could find a whole answer in it."""
        return bool(self.expect.done) or "text" in self.upstream


def load() -> dict[str, WireCase]:
    """Return all cases by name, each kind's in their order."""
    cases = [
        msgspec.structs.replace(case, kind=path.stem)
        for path in sorted(_FOLDER.glob("*.yaml"))
        for case in msgspec.yaml.decode(path.read_bytes(), type=list[WireCase])
    ]
    by_name = {case.name: case for case in cases}
    assert len(by_name) == len(cases), "two cases have the same name"
    return by_name


class Replay:
    """A script of the upstream that replays a case, and counts the tries."""

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
        """Do these steps; return whether the reply is still to be ended."""
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
    """One response, byte by byte."""

    def __init__(self, format_: Format, exchange: Exchange) -> None:
        self.exchange = exchange
        self._format = format_
        self._framing: str | None = None
        name = format_.compressed
        self._compressor = zlib.compressobj(wbits=_WINDOW_BITS[name]) if name else None

    async def say(self, step: Any) -> None:
        """Send what a step says."""
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
        **more: object,
    ) -> None:
        content = json.dumps(more["json"]) if body is None else body
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
    """Return the bytes of the body that a step stands for."""
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
        case _:
            payload = _chunk({"delta": fields.pop("delta", {}), "finish_reason": fields.pop("reason", None)}, **fields)
    return _event(payload, format_)


def _event(payload: object, format_: Format) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False, indent=format_.indent)
    return (format_.prefix + text.replace("\n", "\n" + format_.prefix) + format_.after).encode()
