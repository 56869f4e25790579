"""Request one answer through the public API, and record what arrived, and when."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import httpx
import httpx_sse
import msgspec

from parley.chat.events import NO_USAGE, FinishReason, Usage
from parley.wire.schema import (
    ChatRequest,
    DoneChunk,
    ErrorChunk,
    ErrorResponse,
    StartChunk,
    StreamChunk,
    TextChunk,
)

# Parley enforces its own deadlines; these are for a server that is not Parley, or that hangs.
TIMEOUT: Final = httpx.Timeout(60, connect=5)
_LONGEST_S: Final = 3700
# Even the longest answer that a request can ask for is smaller.
_MOST_BYTES: Final = 1 << 28

UNREACHABLE: Final = "unreachable"
NO_PARLEY: Final = "no_parley"
BROKEN_OFF: Final = "broken_off"


class Answer(msgspec.Struct, kw_only=True):
    """The result of one request; times are in milliseconds since it was sent.

    `error` is one of Parley's error codes, `unreachable`, `no_parley` or `broken_off`; `None` for a complete answer.
    """

    text: str = ""
    model: str | None = None
    correlation_id: str | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = NO_USAGE
    first_token_ms: int | None = None
    total_ms: int = 0
    error: str | None = None


async def ask(client: httpx.AsyncClient, request: ChatRequest) -> Answer:
    """Send a request, and read the answer to its end."""
    answer = Answer()
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_LONGEST_S):
            await _read(client, request, answer, started)
    except httpx.ConnectError:
        answer.error = UNREACHABLE
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.TimeoutException, TimeoutError):
        answer.error = BROKEN_OFF
    except (httpx.HTTPError, httpx_sse.SSEError, msgspec.DecodeError, UnicodeDecodeError):
        answer.error = NO_PARLEY
    answer.total_ms = _since(started)
    return answer


async def _read(client: httpx.AsyncClient, request: ChatRequest, answer: Answer, started: float) -> None:
    headers = {"Content-Type": "application/json"}
    body = msgspec.json.encode(request)
    async with httpx_sse.aconnect_sse(client, "POST", "/chat", content=body, headers=headers) as source:
        answer.correlation_id = source.response.headers.get("X-Correlation-ID")
        if source.response.status_code != httpx.codes.OK:
            answer.error = msgspec.json.decode(await source.response.aread(), type=ErrorResponse).code
            return
        async for event in source.aiter_sse():
            match msgspec.json.decode(event.data, type=StreamChunk):
                case StartChunk(model=model):
                    answer.model = model
                case TextChunk(text=text):
                    if answer.first_token_ms is None:
                        answer.first_token_ms = _since(started)
                    answer.text += text
                case DoneChunk(finish_reason=reason, usage=usage):
                    answer.finish_reason, answer.usage = reason, usage
                    return
                case ErrorChunk(error=error, usage=usage):
                    answer.error, answer.usage = error.code, usage
                    return
            if source.response.num_bytes_downloaded > _MOST_BYTES:
                answer.error = NO_PARLEY
                return
    answer.error = BROKEN_OFF


def _since(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)
