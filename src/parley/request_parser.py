"""h11's parser for what a client sends, with limits on the work that the client can cause."""

from __future__ import annotations

import re
from typing import Any, Final

import h11

from parley.wire.schema import MAX_BODY_BYTES

# Each socket read and each chunk costs the same time, however small it is. A client may use `_FREE_READS` reads, plus
# one per `_BYTES_PER_READ` bytes; the same holds for chunks. That limits the cost to a fifth of a second, and is enough
# for clients that flush every token.
_FREE_READS: Final = 2_500
_BYTES_PER_READ: Final = 512
_FREE_CHUNKS: Final = 2_000
_BYTES_PER_CHUNK: Final = 64

# Maximum parts of a body that are parsed before the app asks for it, if they arrive with the head, as is usual.
_EAGER_PARTS: Final = 16

# Maximum bytes of a request on the wire: chunk sizes, extensions and blank lines can far exceed its body.
_WIRE_BYTES: Final = 2 * MAX_BODY_BYTES

_BLANK_LINES: Final = re.compile(rb"(\r?\n)+")
_ORIGIN: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class ReadBudget:
    """A budget of reads and bytes; more bytes allow more reads."""

    def __init__(self, most_bytes: int, bytes_per_read: int) -> None:
        self._most_bytes = most_bytes
        self._bytes_per_read = bytes_per_read
        self._reads = 0
        self._bytes = 0

    def spend(self, size: int) -> None:
        """Count one read of this size."""
        self._reads += 1
        self._bytes += size

    @property
    def is_spent(self) -> bool:
        """Whether the client has sent too many bytes, or too many small pieces."""
        return self._bytes > self._most_bytes or self._reads > _FREE_READS + self._bytes // self._bytes_per_read


class RefusedRequestError(h11.RemoteProtocolError):
    """A request that h11 would accept, but Parley refuses."""


class ServerConnection(h11.Connection):
    """h11's connection, which parses no more than is needed.

    It parses a body only when the app asks for it, except for the start that arrives with the head. It parses the next
    request only after the response to the current one. Therefore it never returns `h11.PAUSED`, at which uvicorn would
    stop reading and not notice when the client leaves.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._body_is_wanted = True
        self._eager_parts = 0
        self.is_last_request = False
        """Whether the connection closes after this response."""
        self._new_budgets()

    def _new_budgets(self) -> None:
        self._reads = ReadBudget(_WIRE_BYTES, _BYTES_PER_READ)
        self._chunks = 0
        self._body_bytes = 0

    @property
    def is_request_whole(self) -> bool:
        """Whether the whole request has been parsed; nothing after it is parsed before its response."""
        return self.their_state not in {h11.IDLE, h11.SEND_BODY, h11.ERROR}

    @property
    def held_bytes(self) -> int:
        """The number of received bytes that are not parsed yet."""
        return len(self._receive_buffer)

    @property
    def is_budget_spent(self) -> bool:
        """Whether the client has sent too many bytes, or too many small pieces, for one request."""
        return self._reads.is_spent or self._chunks > _FREE_CHUNKS + self._body_bytes // _BYTES_PER_CHUNK

    def want_body(self) -> None:
        """Parse the body from now on."""
        self._body_is_wanted = True

    def receive_data(self, data: bytes) -> None:
        """Buffer bytes from the client."""
        self._eager_parts = 0
        self._reads.spend(len(data))
        super().receive_data(data)

    def start_next_cycle(self) -> None:
        """Get ready for the next request."""
        super().start_next_cycle()
        self._new_budgets()

    def next_event(self) -> Any:
        """Return the next event, or `h11.NEED_DATA` if there is none yet, or if parsing must wait.

        Raises:
            RefusedRequestError: if Parley does not accept the request.
            h11.RemoteProtocolError: if the bytes are not HTTP.
        """
        if self.is_request_whole:
            return h11.NEED_DATA
        if self.their_state is h11.SEND_BODY and not self._body_is_wanted:
            if not self._eager_parts:
                return h11.NEED_DATA
            self._eager_parts -= 1
        if self.is_budget_spent:
            self._refuse("It is too large, or sent in too many small chunks or packets.")
        if self.their_state is h11.IDLE and not self._skip_blank_lines():
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
        return self._accepted(event) if isinstance(event, h11.Request) else event

    def _skip_blank_lines(self) -> bool:
        """Skip the blank lines that RFC 9112 (2.2) allows before a request; return whether a request may follow."""
        data = self._receive_buffer._data  # noqa: SLF001  # h11 has no public way to read its buffer
        if blank := _BLANK_LINES.match(data):
            self._receive_buffer.maybe_extract_at_most(blank.end())
        return data != b"\r"

    def _accepted(self, request: h11.Request) -> h11.Request:
        if not request.http_version.startswith(b"1."):
            self._refuse("Parley speaks HTTP/1.1.", status=505)
        lengths = {value for name, value in request.headers if name == b"content-length"}
        is_chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
        if is_chunked and lengths:
            # A proxy may have used the length, and see other requests in the following bytes than h11 (RFC 9112, 6.1).
            self._cstate.process_keep_alive_disabled()
        self._eager_parts = _EAGER_PARTS
        self._body_is_wanted = not is_chunked and all(int(length) == 0 for length in lengths)
        if origin := _ORIGIN.match(request.target):
            path = request.target[origin.end() :]
            target = path if path.startswith(b"/") else b"/" + path
            return h11.Request(
                method=request.method,
                target=target,
                headers=request.headers.raw_items(),
                http_version=request.http_version,
            )
        return request

    def _refuse(self, detail: str, status: int = 400) -> None:
        self._process_error(self.their_role)
        raise RefusedRequestError(detail, error_status_hint=status)

    def _clean_up_response_headers_for_sending(self, response: h11.Response) -> h11.Response:
        if self.is_last_request or not self.is_request_whole:
            # Parley does not parse the rest of this request, so it could not tell the rest from a next request.
            self._cstate.process_keep_alive_disabled()
        return super()._clean_up_response_headers_for_sending(response)
