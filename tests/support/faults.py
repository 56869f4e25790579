"""What Parley's client must receive for each of the known faults of upstreams.

Run as a program (`just faulty`), this module serves the upstream of `parley faulty`, and the wire cases in addition.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from parley.chat.errors import ErrorCode
from parley.chat.events import FinishReason, UsageSource
from parley.testing import faulty
from parley.testing.faults import FAULTS, MANY, UNICODE
from tests.support import replay, wire_cases
from tests.support.canaries import CANARY, CANARY_KEY

if TYPE_CHECKING:
    from parley.testing.exchange import Exchange

ECHO: Final = {"error": {"message": f"{CANARY} {CANARY_KEY}", "type": CANARY, "param": CANARY, "code": CANARY}}
"""An error that quotes the prompt and the key, as some upstreams send it."""


@dataclass(frozen=True)
class Told:
    """What the client must receive."""

    text: str | None = "abc"
    """The text that reaches the client; `None` if the client gets an HTTP error instead of a stream."""
    code: ErrorCode | None = None
    """The code of the error; `None` if the answer ends with `done`."""
    finish_reason: FinishReason = FinishReason.STOP
    source: UsageSource = UsageSource.ESTIMATE
    """The source of the usage in the stream's last chunk."""
    retryable: bool = True
    retry_after_s: int | None = None
    upstream_status: int | None = None


def failed(code: ErrorCode = ErrorCode.UPSTREAM_ERROR, **more: object) -> Told:
    """Return what the client must receive for a fault before the first text."""
    return Told(text=None, code=code, source=UsageSource.NONE, **more)  # type: ignore[arg-type]


def refused(status: int, code: ErrorCode = ErrorCode.UPSTREAM_ERROR, **more: object) -> Told:
    """Return what the client must receive if the upstream refuses the request with this HTTP status."""
    return failed(code, upstream_status=status, **more)


_TIMEOUT: Final = failed(ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT)
_STALLED: Final = Told(code=ErrorCode.UPSTREAM_IDLE_TIMEOUT)
_UNREACHABLE: Final = failed(ErrorCode.UPSTREAM_UNREACHABLE)
_CUT: Final = Told(code=ErrorCode.UPSTREAM_TRUNCATED)
_CUT_BEFORE_TEXT: Final = failed(ErrorCode.UPSTREAM_TRUNCATED)
_BROKEN: Final = Told(code=ErrorCode.UPSTREAM_ERROR)
_FAILED: Final = failed()
_DONE: Final = Told()
_COUNTED: Final = Told(source=UsageSource.UPSTREAM)
_AUTH, _LIMIT = ErrorCode.UPSTREAM_AUTH, ErrorCode.UPSTREAM_RATE_LIMITED
_TOO_LONG: Final = refused(400, ErrorCode.CONTEXT_LENGTH_EXCEEDED, retryable=False)

TOLD: Final = {
    "none": _COUNTED,
    "hang": _TIMEOUT,
    "headers_then_hang": _TIMEOUT,
    "pings_only": _TIMEOUT,
    "headers_late": _COUNTED,
    "text_late": _COUNTED,
    "stall": _STALLED,
    "stall_with_pings": _STALLED,
    "reset": _UNREACHABLE,
    "close": _UNREACHABLE,
    "headers_then_reset": _CUT_BEFORE_TEXT,
    "headers_then_close": _CUT_BEFORE_TEXT,
    "reset_after_text": _CUT,
    "close_after_text": _CUT,
    "no_reason": _CUT,
    "no_reason_but_done": Told(finish_reason=FinishReason.UNKNOWN),
    "nothing": _FAILED,
    "only_done": _FAILED,
    "role_then_end": _CUT_BEFORE_TEXT,
    "reset_after_reason": _DONE,
    "hang_after_reason": _DONE,
    "html": _FAILED,
    "json": _FAILED,
    "malformed": _FAILED,
    "malformed_after_text": _BROKEN,
    "not_utf8": Told(text="\ufffd"),
    "another_shape": _FAILED,
    "error_in_band": _FAILED,
    "error_in_band_after_text": _BROKEN,
    "cut_in_code_points": Told(text=UNICODE),
    "cut_in_frames_with_crlf": Told(text=UNICODE),
    "tool_call": failed(retryable=False),
    "301": refused(301, retryable=False),
    "400": refused(400, retryable=False),
    "401": refused(401, _AUTH, retryable=False),
    "403": refused(403, _AUTH, retryable=False),
    "404": refused(404, retryable=False),
    "408": refused(408),
    "409": refused(409),
    "422": refused(422, retryable=False),
    "429": refused(429, _LIMIT),
    "429_retry_after": refused(429, _LIMIT, retry_after_s=7),
    "429_retry_after_absurd": refused(429, _LIMIT),
    "429_retry_after_words": refused(429, _LIMIT),
    "500": refused(500),
    "500_without_json": refused(500),
    "502": refused(502),
    "503": refused(503),
    "503_retry_after": refused(503, retry_after_s=7),
    "529": refused(529),
    "context_length_openai": _TOO_LONG,
    "context_length_llama_cpp": _TOO_LONG,
    "context_length_vllm": _TOO_LONG,
    "length": Told(finish_reason=FinishReason.LENGTH, source=UsageSource.UPSTREAM),
    "content_filter": Told(finish_reason=FinishReason.CONTENT_FILTER, source=UsageSource.UPSTREAM),
    "no_usage": _DONE,
    "usage_negative": _DONE,
    "usage_absurd": _DONE,
    "empty": Told(text="", source=UsageSource.UPSTREAM),
    "empty_without_usage": Told(text="", source=UsageSource.NONE),
    "refusal": _DONE,
    "enormous_chunk": Told(text="x" * 900_000, source=UsageSource.UPSTREAM),
    "endless_line": _FAILED,
    "many_tokens": Told(text="x" * MANY),
}


_cases: Final = cache(wire_cases.load)


async def show_named(exchange: Exchange) -> None:
    """Show the fault, or the wire case, that the last word of the message names."""
    cases = {name: replay.Replay(case) for name, case in _cases().items()}
    await faulty.script_of(exchange, {**cases, **FAULTS})(exchange)


if __name__ == "__main__":
    faulty.serve(int(sys.argv[1]), show_named)
