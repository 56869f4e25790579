"""Owns the operations: chat as a stream, chat as one answer, and health."""

from http import HTTPStatus
from typing import Final

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import JSONBody

from parley.chat.service import ChatService
from parley.settings import Settings
from parley.web.errors import STATUS, ClientDisconnectedError
from parley.web.request import ChatAPIRequest
from parley.web.schema import ChatRequest, ChatResponse, ErrorResponse, Health, StreamChunk
from parley.web.sse import EventStream, cancelled_on_disconnect

_FAILURES: Final = {
    status.value: ResponseSpec(
        ErrorResponse,
        generate_examples=False,
        description=" or ".join(f"`{code}`" for code in STATUS if STATUS[code] is status),
    )
    for status in sorted(set(STATUS.values()))
}

_NOT_READY: Final = {
    HTTPStatus.SERVICE_UNAVAILABLE.value: ResponseSpec(Health, generate_examples=False, description="No, and why.")
}


class ChatController(Controller):
    """The main job."""

    path = "/chat"
    tags = ("chat",)

    @post(
        operation_id="streamChat",
        summary="Stream an answer",
        status_code=HTTPStatus.OK,
        media_type="text/event-stream",
        response_description="The answer as it is made.",
        responses=_FAILURES,
    )
    async def stream(
        self,
        data: JSONBody[ChatRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> EventStream[StreamChunk]:
        """Answer a message as server-sent events: one start, texts, then exactly one of done or error."""
        return EventStream(
            service.stream(data.to_prompt(settings)),
            hold_headers_s=settings.hold_headers_s,
            heartbeat_s=settings.heartbeat_s,
        )

    @post(
        "/complete",
        operation_id="completeChat",
        summary="Get a whole answer",
        status_code=HTTPStatus.OK,
        response_description="The whole answer.",
        responses=_FAILURES,
    )
    async def complete(
        self,
        request: ChatAPIRequest,
        data: JSONBody[ChatRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> ChatResponse:
        """Answer a message in one piece, for callers that do not stream."""
        async with cancelled_on_disconnect(request.receive):
            reply = await service.complete(data.to_prompt(settings))
            return ChatResponse(
                text=reply.text,
                finish_reason=reply.finish_reason,
                usage=reply.usage,
                timing=reply.timing,
                model=reply.model,
                correlation_id=request.state.correlation_id,
            )
        raise ClientDisconnectedError


class HealthController(Controller):
    """What an orchestrator asks."""

    path = "/health"
    tags = ("health",)

    @get("/live", operation_id="getLiveness", summary="Is the process alive?", response_description="Yes.")
    async def live(self) -> Health:
        """Answer, which is all there is to tell."""
        return Health(status="live")

    @get(
        "/ready",
        operation_id="getReadiness",
        summary="Would a chat be answered?",
        response_description="Yes.",
        responses=_NOT_READY,
    )
    async def ready(self, service: NamedDependency[ChatService]) -> Response[Health]:
        """Tell whether the model can be reached and Parley is not shutting down: 200 if so, else 503 and why."""
        problem = await service.check()
        if problem is None:
            return Response(Health(status="ready"))
        return Response(Health(status="not_ready", reason=problem), status_code=HTTPStatus.SERVICE_UNAVAILABLE)
