"""Ask Parley with the client that OpenAPI Generator generated, in `parley_client`."""

import sys
from typing import NoReturn, assert_never

import parley_client as parley
import sseclient


def fail(error: parley.ErrorResponse) -> NoReturn:
    sys.exit(f"{error.code}: {error.detail} [{error.correlation_id}]")


def ask(base_url: str, message: str) -> None:
    chat = parley.ChatApi(parley.ApiClient(parley.Configuration(host=base_url)))
    request = parley.ChatRequest(message=message)
    with chat.stream_chat_without_preload_content(request, _request_timeout=(5.0, 60.0)) as response:
        if response.status != 200:
            fail(parley.ErrorResponse.model_validate_json(response.data))
        reason = "the connection broke off"
        for event in sseclient.SSEClient(response).events():
            match chunk := parley.StreamChunk.from_json(event.data).actual_instance:
                case parley.StartChunk():
                    print(f"[{chunk.model}, {chunk.correlation_id}]", file=sys.stderr)
                case parley.ReasoningChunk():
                    pass  # comes only to requests with `include_reasoning`
                case parley.TextChunk():
                    print(chunk.text, end="", flush=True)
                case parley.DoneChunk():
                    reason = chunk.finish_reason.value
                    break
                case parley.ErrorChunk():
                    fail(chunk.error)
                case None:
                    pass  # never: it would have raised
                case _:
                    assert_never(chunk)
    if reason != "stop":
        sys.exit(f"The answer is incomplete: {reason}.")


try:
    ask(*sys.argv[1:])
except KeyboardInterrupt:
    sys.exit(130)
