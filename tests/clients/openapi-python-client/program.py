"""Ask Parley with the client that openapi-python-client generated, in `parley_client`."""

import sys
from typing import NoReturn, assert_never

import httpx
import httpx_sse
from parley_client import Client
from parley_client.models import ChatRequest, DoneChunk, ErrorChunk, ErrorResponse, StartChunk, TextChunk

CHUNKS: dict[str, type[StartChunk | TextChunk | DoneChunk | ErrorChunk]] = {
    "start": StartChunk,
    "text": TextChunk,
    "done": DoneChunk,
    "error": ErrorChunk,
}


def fail(error: ErrorResponse) -> NoReturn:
    sys.exit(f"{error.code}: {error.detail} [{error.correlation_id}]")


def ask(base_url: str, message: str) -> None:
    http = Client(base_url, timeout=httpx.Timeout(60)).get_httpx_client()
    body = ChatRequest(message=message).to_dict()
    with httpx_sse.connect_sse(http, "POST", "/chat", json=body) as source:  # leaving it stops the model
        if source.response.is_error:
            source.response.read()
            fail(ErrorResponse.from_dict(source.response.json()))
        reason = "the connection broke off"
        for event in source.iter_sse():
            match chunk := CHUNKS[event.event].from_dict(event.json()):
                case StartChunk():
                    print(f"[{chunk.model}, {chunk.correlation_id}]", file=sys.stderr)
                case TextChunk():
                    print(chunk.text, end="", flush=True)
                case DoneChunk():
                    reason = chunk.finish_reason.value
                    break
                case ErrorChunk():
                    fail(chunk.error)
                case _:
                    assert_never(chunk)
    if reason != "stop":
        sys.exit(f"The answer is incomplete: {reason}.")


try:
    ask(*sys.argv[1:])
except KeyboardInterrupt:
    sys.exit(130)
