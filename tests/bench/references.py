"""The references for Parley's benchmark: FastAPI with openai-agents as documented, and a minimal ASGI application."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from litestar.types import HTTPScope, Receive, Send

PORT = int(os.environ.get("BENCH_UPSTREAM_PORT", "0"))


class ChatRequest(BaseModel):
    """A message, with the turns before it."""

    message: str
    history: list[dict[str, str]] = []


def as_it_comes() -> FastAPI:
    """Return an app as the documentation of FastAPI and openai-agents suggests."""
    app = FastAPI()
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
    agent = Agent(name="assistant", model=OpenAIChatCompletionsModel("bench-1", client))

    @app.post("/chat")
    async def chat(request: ChatRequest) -> StreamingResponse:
        turns: Any = [*request.history, {"role": "user", "content": request.message}]

        async def events() -> AsyncIterator[str]:
            result = Runner.run_streamed(agent, turns, run_config=RunConfig(tracing_disabled=True))
            async for event in result.stream_events():
                if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
                    yield f"data: {json.dumps({'text': event.data.delta})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


async def pass_through(_: HTTPScope, receive: Receive, send: Send) -> None:
    """Forward the request's body and the response's bytes unread: this is the cost of the server and the sockets."""
    body = b""
    while True:
        message: Any = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"\r\n\r\n")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    tail = b""
    while not tail.endswith(b"0\r\n\r\n"):
        data = await reader.read(65_536)
        tail = data[-5:] if len(data) >= 5 else (tail + data)[-5:]
        await send({"type": "http.response.body", "body": data, "more_body": True})
    writer.close()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
