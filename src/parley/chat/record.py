"""The record of a request: each layer fills in what it knows; the log line, metrics and span are made from it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import FinishReason, UsageSource

_CLIENT_ERRORS: Final = {*range(400, 500), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}

_Milliseconds = Annotated[int, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=0)]
_Outcome = Literal["completed", "failed", "client_disconnected", "cancelled"]


class Record(msgspec.Struct, kw_only=True):
    """What is known about one request. A field is `None` if its step did not happen, such as the first token.

    Only the correlation id can contain text from the caller, and only if it is valid.
    """

    correlation_id: Annotated[str, Meta(description="The client's own, if it sent a valid one.")]
    outcome: Annotated[
        _Outcome,
        Meta(description="`completed`, `failed`, `client_disconnected`, or `cancelled` when Parley stopped."),
    ] = "cancelled"  # until a layer sets another outcome, because a request can be cancelled at any time
    bytes_in: Annotated[_Count, Meta(description="Bytes of the request's body, as far as Parley read it.")] = 0
    bytes_out: Annotated[_Count, Meta(description="Bytes of the response's body.")] = 0
    total_ms: Annotated[
        _Milliseconds, Meta(description="Milliseconds from the request's first line to the end of the response.")
    ] = 0
    trace_id: Annotated[str | None, Meta(description="The ID of the request's trace, if it has one.")] = None
    method: Annotated[
        str | None, Meta(description="The HTTP method; `other` for an unknown one, null if the request was not HTTP.")
    ] = None
    route: Annotated[
        str | None, Meta(description="The path's template; null if no operation has this path and method.")
    ] = None
    status: Annotated[
        int | None,
        Meta(description="The HTTP status; 499 if the client left before Parley sent one, null if Parley sent none."),
    ] = None
    error_code: Annotated[ErrorCode | None, Meta(description="The error's code.")] = None
    reason: Annotated[
        str | None,
        Meta(
            description="Which of an error's causes it was: `queue_full`, `queue_timeout`, `draining`, "
            "`drain_timeout`, `second_signal`, `connections_full`, `connect_timeout`, `no_key`, `wrong_key`, "
            "`requests_per_minute`, "
            "`streams_per_caller`, `tokens_per_minute`, `unfinished_requests`."
        ),
    ] = None
    caller: Annotated[
        str | None, Meta(description="The first 8 hexadecimal digits of the SHA-256 of the caller's key.")
    ] = None
    chunks: Annotated[_Count | None, Meta(description="Chunks in the stream.")] = None
    queue_ms: Annotated[
        _Milliseconds | None, Meta(description="Milliseconds in the queue, even if no place became free.")
    ] = None
    first_token_ms: Annotated[
        _Milliseconds | None, Meta(description="Milliseconds from the start of the request to its first token.")
    ] = None
    model: Annotated[str | None, Meta(description="The model that answered, or was tried last.")] = None
    is_fallback: Annotated[bool | None, Meta(description="Whether the fallback answered, or was tried last.")] = None
    attempts: Annotated[_Count | None, Meta(description="Requests to upstreams, including retries.")] = None
    upstream_status: Annotated[int | None, Meta(description="The HTTP status of the upstream's error.")] = None
    finish_reason: Annotated[FinishReason | None, Meta(description="Why the model stopped.")] = None
    input_tokens: Annotated[_Count | None, Meta(description="Tokens of the prompt.")] = None
    output_tokens: Annotated[_Count | None, Meta(description="Tokens of the answer, or of the part that arrived.")] = (
        None
    )
    cached_input_tokens: Annotated[
        _Count | None, Meta(description="Input tokens that came from the upstream's cache.")
    ] = None
    reasoning_tokens: Annotated[_Count | None, Meta(description="Output tokens that the model used for reasoning.")] = (
        None
    )
    usage_source: Annotated[
        UsageSource | None, Meta(description="Where the token counts come from: `upstream`, `estimate` or `none`.")
    ] = None

    def fail(self, error: ChatError) -> None:
        """Note that the request failed with this error."""
        self.outcome = "failed"
        self.error_code = error.code
        self.reason = error.reason
        self.upstream_status = error.upstream_status

    def end(self, outcome: _Outcome) -> None:
        """Note how the request ended, unless a layer has already set another outcome."""
        if self.outcome == "cancelled":
            self.outcome = outcome

    @property
    def is_failure(self) -> bool:
        """Whether the request failed, and not because of the caller."""
        return self.outcome in {"failed", "cancelled"} and self.status not in _CLIENT_ERRORS
