"""A fake Parley on a real socket, for clients in any language."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from parley.testing.exchange import ScriptedServer
from parley.testing.fake import Fake
from parley.testing.replies import Received, Reply

if TYPE_CHECKING:
    from parley.testing.exchange import Exchange

_PREFLIGHT: Final = {"access-control-allow-methods": "GET, POST", "access-control-max-age": "600"}
_EXPOSED: Final = {"access-control-expose-headers": "X-Correlation-ID, Retry-After"}


class FakeParleyServer(Fake):
    """A server at `url` that sends scripted answers; it runs in a thread, from the start to the end of a `with` block.

    It accepts requests from pages of any origin. If a client sent a request before the test had set an answer, the end
    of the block raises `AssertionError`.
    """

    def __init__(self, port: int = 0) -> None:
        """Prepare a server for this port of 127.0.0.1; 0 is any free port."""
        super().__init__()
        self.url = ""
        self._port = port
        self._is_ready = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self.url, self._failure = "", None
        self._is_ready.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._is_ready.wait()
        if not self.url:
            self._end()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._end()

    def _end(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with _Server(self, self._port) as server:
                self.url = server.origin
                self._is_ready.set()
                await self._stop.wait()
            self._failure = server.mistake
        except OSError as error:
            self._failure = error
        finally:
            self._is_ready.set()


class _Server(ScriptedServer):
    def __init__(self, fake: Fake, port: int) -> None:
        super().__init__(port)
        self._fake = fake
        self.mistake: Exception | None = None
        """The test's mistake, which is no client's business; the end of the `with` block raises it."""

    async def answer(self, exchange: Exchange) -> None:
        origin = {"access-control-allow-origin": "*"} if "origin" in exchange.headers else {}
        if exchange.method == "OPTIONS" and "access-control-request-method" in exchange.headers:
            allowed = {"access-control-allow-headers": exchange.headers.get("access-control-request-headers", "")}
            await _send(exchange, Reply(200, {**_PREFLIGHT, **allowed, **origin}, []))
            return
        path, _, _ = exchange.path.partition("?")
        received = Received(exchange.method, path, exchange.headers, exchange.body)
        try:
            reply = self._fake.reply_to(received)
        except Exception as mistake:  # noqa: BLE001  # whatever it is, it is for the test to see
            self.mistake = mistake
            reply = None
        if reply is None:
            exchange.abort()
            return
        was_sent = False
        with suppress(ConnectionError):
            headers = {**reply.headers, **_EXPOSED, **origin}
            was_sent = await _send(exchange, dataclasses.replace(reply, headers=headers))
        if not was_sent:
            received.left.set()


async def _send(exchange: Exchange, reply: Reply) -> bool:
    """Send a reply; return whether the client stayed until its end."""
    headers = dict(reply.headers)
    await exchange.head(reply.status, headers.pop("content-type", "text/plain"), **headers)
    if exchange.method == "HEAD":
        return True
    for number, piece in enumerate(reply.pieces):
        if number and reply.pace_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(exchange.gone.wait(), reply.pace_s)
        if exchange.gone.is_set():
            return False
        await exchange.write(piece)
    if reply.is_whole:
        await exchange.end()
    else:
        exchange.close()
    return True
