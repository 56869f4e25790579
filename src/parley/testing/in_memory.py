"""A fake Parley in memory, for clients that use httpx."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import anyio
import httpx

from parley.testing.fake import Fake
from parley.testing.replies import Received, Reply


class FakeParley(Fake, httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport for `httpx.Client` and `httpx.AsyncClient` that sends scripted answers, without a server."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        request.read()
        return self._respond(request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        await request.aread()
        return self._respond(request)

    def _respond(self, request: httpx.Request) -> httpx.Response:
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in request.headers.raw}
        received = Received(request.method, request.url.path, headers, request.content)
        reply = self.reply_to(received)
        if reply is None:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return httpx.Response(reply.status, headers=reply.headers, stream=_Body(reply, received))


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response's body, sent piece by piece."""

    def __init__(self, reply: Reply, received: Received) -> None:
        self._reply = reply
        self._received = received
        self._is_over = False

    def __iter__(self) -> Iterator[bytes]:
        for number, piece in enumerate(self._reply.pieces):
            if number and self._reply.pace_s:
                time.sleep(self._reply.pace_s)
            yield piece
        self._end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._reply.pieces):
            if number and self._reply.pace_s:
                await anyio.sleep(self._reply.pace_s)
            yield piece
        self._end()

    def _end(self) -> None:
        self._is_over = True
        if not self._reply.is_whole:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    def close(self) -> None:
        """Note whether the client left before the end."""
        if not self._is_over:
            self._received.left.set()

    async def aclose(self) -> None:
        """Note whether the client left before the end."""
        self.close()
