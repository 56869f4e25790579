"""The HTTP operations: chat as a stream, chat as one answer, what is served, health checks and metrics."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from litestar.plugins.prometheus import PrometheusController
from msgspec import UNSET

from parley.chat.events import Event, ReplyFailed, ReplyFinished, ReplyReasoning, ReplyStarted, ReplyText
from parley.chat.record import Record
from parley.chat.service import ChatService
from parley.settings import Settings
from parley.web.errors import ClientDisconnectedError, IncompleteAnswerError
from parley.web.examples import STREAM
from parley.web.openapi import (
    CHAT_FAILURES,
    INFO_FAILURES,
    LIVENESS_FAILURES,
    MAY_NEED_KEY,
    READINESS_FAILURES,
    DescribedOperation,
)
from parley.web.request import ChatAPIRequest
from parley.web.responses import JSONResponse
from parley.web.sse import EventStream, cancelled_on_disconnect
from parley.wire.info import Info, Limits
from parley.wire.schema import ChatRequest, ChatResponse, Health, StreamChunk


class ChatController(Controller):
    """The chat operations."""

    path = "/chat"
    tags = ("chat",)

    @post(
        operation_id="streamChat",
        summary="Stream an answer",
        status_code=HTTPStatus.OK,
        media_type="text/event-stream",
        response_description=f"The answer as a stream, for example:\n\n```\n{STREAM}\n```",
        operation_class=DescribedOperation,
        responses=CHAT_FAILURES,
        security=MAY_NEED_KEY,
    )
    async def stream(
        self,
        request: ChatAPIRequest,
        data: JSONBody[ChatRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> EventStream[Annotated[StreamChunk, Parameter(schema_component_key="StreamChunk")]]:
        """Answer a message as server-sent events: `start`, the text, then exactly one of `done` or `error`.

        The data of each event is one chunk, as one line of JSON, and the event's name is the chunk's `type`. While the
        stream is silent, Parley sends a comment, `: ping`, every few seconds. A failure before the first token is an
        HTTP error; a later failure is an `error` chunk. If the first token takes long, Parley sends the headers and a
        comment first; a failure between these and the first token is a stream of one `error` chunk, with `seq` 0.
        Streams cannot be resumed: a request that is sent again is answered, and paid for, again. Closing the connection
        stops the model.
        """
        state = request.scope["state"]
        return EventStream(
            service.stream(data.to_prompt(settings, state["caller"]), state["record"]),
            hold_headers_s=settings.hold_headers_s,
            heartbeat_s=settings.heartbeat_s,
        )

    @post(
        "/complete",
        operation_id="completeChat",
        summary="Get a whole answer",
        status_code=HTTPStatus.OK,
        response_class=JSONResponse,
        response_description="The whole answer.",
        operation_class=DescribedOperation,
        responses=CHAT_FAILURES,
        security=MAY_NEED_KEY,
    )
    async def complete(
        self,
        request: ChatAPIRequest,
        data: JSONBody[ChatRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> ChatResponse:
        """Answer a message with one JSON response, for clients that do not stream.

        If the model fails after it began to answer, the error has the text so far as `partial`.
        """
        record: Record = request.scope["state"]["record"]
        reply = service.stream(data.to_prompt(settings, request.scope["state"]["caller"]), record)
        async with cancelled_on_disconnect(request.receive, record), aclosing(reply) as events:
            return await _collect(
                events,
                record.correlation_id,
                include_reasoning=bool(data.include_reasoning),
                include_partial=not service.may_withhold,
            )
        raise ClientDisconnectedError


async def _collect(
    events: AsyncIterator[Event], correlation_id: str, *, include_reasoning: bool, include_partial: bool
) -> ChatResponse:
    """Join the events of a reply into one answer, or raise `IncompleteAnswerError` if the reply failed."""
    model = ""
    texts: list[str] = []
    thoughts: list[str] = []
    async for event in events:
        match event:
            case ReplyStarted():
                model = event.model
            case ReplyText():
                texts.append(event.text)
            case ReplyReasoning():
                thoughts.append(event.text)
            case ReplyFailed():
                raise IncompleteAnswerError(event.error, "".join(texts) if include_partial else "")
            case ReplyFinished():
                return ChatResponse(
                    text="".join(texts),
                    reasoning="".join(thoughts) if include_reasoning else UNSET,
                    finish_reason=event.finish_reason,
                    usage=event.usage,
                    timing=event.timing,
                    model=model,
                    correlation_id=correlation_id,
                )
    raise AssertionError("a reply has a last event")


class InfoController(Controller):
    """What this Parley serves."""

    path = "/info"
    tags = ("info",)

    @get(
        operation_id="getInfo",
        summary="Get the model and the limits",
        response_description="The model, the limits in force, and the version.",
        operation_class=DescribedOperation,
        responses=INFO_FAILURES,
        security=MAY_NEED_KEY,
    )
    async def info(self, service: NamedDependency[ChatService], settings: NamedDependency[Settings]) -> Info:
        """Return the model, the limits in force, and the version.

        The request reaches no upstream and counts towards no quota. It is answered even if Parley is not ready.
        """
        model, *fallbacks = service.model_names
        return Info(
            model=model,
            fallback_model=fallbacks[0] if fallbacks else None,
            limits=Limits.of(settings),
            version=version("parley"),
        )


class MetricsController(PrometheusController):
    """The metrics, for Prometheus."""

    include_in_schema = False


class HealthController(Controller):
    """The health checks, for orchestrators."""

    path = "/health"
    tags = ("health",)

    @get(
        "/live",
        operation_id="getLiveness",
        summary="Is the process alive?",
        response_description="The check passes.",
        operation_class=DescribedOperation,
        responses=LIVENESS_FAILURES,
    )
    async def live(self) -> Health:
        """Return 200: a process that can answer is alive."""
        return Health(status="live", reason=None)

    @get(
        "/ready",
        operation_id="getReadiness",
        summary="Would a chat be answered?",
        response_description="The check passes.",
        operation_class=DescribedOperation,
        responses=READINESS_FAILURES,
    )
    async def ready(self, service: NamedDependency[ChatService]) -> Response[Health]:
        """Return 200 if the model can be reached and Parley is not shutting down, otherwise 503 and the reason."""
        problem = await service.check()
        if problem is None:
            return Response(Health(status="ready", reason=None))
        return Response(Health(status="not_ready", reason=problem), status_code=HTTPStatus.SERVICE_UNAVAILABLE)
