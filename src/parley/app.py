"""The assembly of the application from its parts; no other module imports all of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.di import NamedDependency, Provide

from parley.agent.custom import CustomAgent
from parley.agent.plain import PlainAgent
from parley.agent.threads import DaemonThreads
from parley.chat.service import ChatService
from parley.providers.calls import Upstreams
from parley.providers.embedded import Address, EmbeddedModelError, EmbeddedUpstream, upstream_at
from parley.providers.upstream import MAX_STREAMS, OPENAI_BASE_URL, Upstream
from parley.signals import draining
from parley.telemetry.metrics import metrics
from parley.telemetry.plugin import TelemetryPlugin
from parley.web.controllers import ChatController, HealthController, InfoController, MetricsController
from parley.web.errors import EXCEPTION_HANDLERS
from parley.web.keys import KeyGuard, check_room
from parley.web.openapi import openapi_config
from parley.web.request import ChatAPIRequest
from parley.web.shapes import WireSchemas
from parley.wire.schema import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from litestar import Request

    from parley.chat.service import Agent
    from parley.chat.watch import Tracer, Watch
    from parley.settings import Secret, Settings

_log: Final = structlog.stdlib.get_logger(__name__)


def create_app(settings: Settings, embedded: Address | None = None) -> Litestar:
    """Assemble the ASGI application.

    Its lifespan opens the upstreams, and drains the service when a signal to stop arrives. `embedded` is the address
    of an embedded model that runs already; `None` starts one if the settings need it.
    """
    watch, telemetry = metrics(), TelemetryPlugin(settings)
    sources = list(_sources(settings, watch, telemetry.tracer, embedded))
    upstreams = Upstreams(sources)
    agent: Agent = (
        CustomAgent(settings.agent, upstreams, settings) if settings.agent else PlainAgent(upstreams, settings)
    )
    service = ChatService(settings, agent, watch)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        described = _described(settings, agent)
        try:
            async with AsyncExitStack() as stack:
                for source in sources:
                    await stack.enter_async_context(source)
                stack.enter_context(draining(service, settings.drain_timeout_s))
                if settings.agent is not None:
                    asyncio.get_running_loop().set_default_executor(DaemonThreads(MAX_STREAMS))
                _log.info("serving", **described)
                yield
            _log.info("stopped", **described)
        except EmbeddedModelError as error:
            _log.critical("start_failed", reason=str(error))
            raise
        except Exception:
            _log.exception("unexpected_error")
            raise

    def provide_service(settings: NamedDependency[Any]) -> ChatService:  # noqa: ARG001  # Litestar then starts no tasks
        return service

    key_guard = KeyGuard(settings.keys())

    # Not a guard, because Litestar copies the route handler for each guard it calls. A controller's own
    # `before_request` would replace this one.
    async def admit(request: Request[Any, Any, Any]) -> None:
        check_room(request)
        await key_guard(request, request.route_handler)

    return Litestar(
        route_handlers=[
            Router("/", route_handlers=[ChatController, InfoController], before_request=admit),
            Router("/", route_handlers=[MetricsController], guards=[KeyGuard(settings.metrics_keys())]),
            HealthController,
        ],
        dependencies={
            "service": Provide(provide_service, sync_to_thread=False),
            "settings": Provide(lambda: settings, sync_to_thread=False),
        },
        cors_config=_cors(settings),
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lifespan],
        openapi_config=openapi_config(),
        plugins=[telemetry, WireSchemas()],
        request_class=ChatAPIRequest,
        request_max_body_size=MAX_BODY_BYTES,
    )


def _described(settings: Settings, agent: Agent) -> dict[str, object]:
    """Return log fields that tell the operator the address, the models and the limits."""
    return {
        "url": settings.url,
        "version": version("parley"),
        "models": agent.model_names,
        "is_embedded": settings.embedded,
        "keys": len(settings.keys()),
        "max_streams": settings.max_streams or agent.max_streams,
        "max_queue": settings.max_queue,
        "max_output_tokens": settings.max_output_tokens,
        "request_timeout_s": settings.request_timeout_s,
        "requests_per_minute": settings.requests_per_minute,
        "max_streams_per_caller": settings.max_streams_per_caller,
        "tokens_per_minute": settings.tokens_per_minute,
    }


def _cors(settings: Settings) -> CORSConfig | None:
    """Return the CORS rules that let pages of the configured origins call Parley, or `None` without such origins."""
    if settings.cors_origins is None:
        return None
    return CORSConfig(
        allow_origins=settings.cors_origins.split(","),
        allow_methods=["GET", "POST"],
        expose_headers=["X-Correlation-ID", "Retry-After"],
    )


def _sources(
    settings: Settings, watch: Watch, tracer: Tracer, embedded: Address | None
) -> Iterator[EmbeddedUpstream | Upstream]:
    """Yield the upstream, then the fallback if there is one."""

    def upstream(base_url: str | None, key: Secret | None, model: str | None, *, has_extras: bool = True) -> Upstream:
        return Upstream(
            watch=watch,
            tracer=tracer,
            base_url=base_url or OPENAI_BASE_URL,
            api_key=key.reveal() if key else None,
            model_name=model or "",
            instructions=settings.system_prompt,
            temperature=settings.temperature,
            reasoning_effort=settings.reasoning_effort if has_extras else None,
            extra_body=settings.added_fields() if has_extras else {},
            extra_headers=settings.added_headers() if has_extras else {},
            connect_timeout_s=settings.connect_timeout_s,
            log_text=settings.log_upstream_text,
        )

    if settings.embedded:
        yield (
            EmbeddedUpstream(settings, watch, tracer)
            if embedded is None
            else upstream_at(embedded, settings, watch, tracer)
        )
    else:
        yield upstream(settings.openai_base_url, settings.openai_api_key, settings.model)
    if settings.fallback_model:
        base_url = settings.fallback_base_url or settings.openai_base_url
        key = settings.fallback_api_key or (None if settings.fallback_base_url else settings.openai_api_key)
        # Extra fields, headers and keys are meant for one API, and may be secret: send them to no other API.
        yield upstream(
            base_url, key, settings.fallback_model, has_extras=not settings.embedded and not settings.fallback_base_url
        )
