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
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in reversed(request.headers.raw)}
        received = Received(request.method, request.url.path, headers, request.content)
        reply = self.reply_to(received)
        if reply is None:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return httpx.Response(reply.status, headers=reply.headers, stream=_Body(request, reply, received))


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response's body, sent piece by piece."""

    def __init__(self, request: httpx.Request, reply: Reply, received: Received) -> None:
        self._request = request
        self._reply = reply
        self._received = received
        patience_s = request.extensions.get("timeout", {}).get("read")
        self._pause_s = reply.pace_s if patience_s is None else min(reply.pace_s, patience_s)
        self._is_over = False

    def __iter__(self) -> Iterator[bytes]:
        for number, piece in enumerate(self._reply.pieces):
            if number:
                time.sleep(self._pause_s)
                self._check_patience()
            yield piece
        self._end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._reply.pieces):
            if number:
                await anyio.sleep(self._pause_s)
                self._check_patience()
            yield piece
        self._end()

    def _check_patience(self) -> None:
        if self._pause_s < self._reply.pace_s:
            raise httpx.ReadTimeout("The fake Parley is slower than the client's read timeout.", request=self._request)

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
