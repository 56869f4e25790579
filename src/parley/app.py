"""Owns the assembly: the only module that knows every other one."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide

from parley.chat.service import ChatService
from parley.providers.embedded import EmbeddedModelError, EmbeddedProvider
from parley.providers.upstream import OPENAI_BASE_URL, UpstreamProvider
from parley.signals import draining
from parley.telemetry.plugin import TelemetryPlugin
from parley.web.controllers import ChatController, HealthController
from parley.web.errors import EXCEPTION_HANDLERS
from parley.web.openapi import WireSchemas, openapi_config
from parley.web.request import MAX_BODY_BYTES, ChatAPIRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from parley.settings import Secret, Settings

_log: Final = structlog.stdlib.get_logger(__name__)


def create_app(settings: Settings) -> Litestar:
    """Assemble the ASGI application; its lifespan opens the providers, and drains the service at a signal to stop."""
    providers = list(_providers(settings))
    service = ChatService(settings, providers)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        try:
            async with AsyncExitStack() as stack:
                for provider in providers:
                    await stack.enter_async_context(provider)
                stack.enter_context(draining(service, settings.drain_timeout_s))
                yield
        except EmbeddedModelError as error:
            _log.critical("start_failed", reason=str(error))
            raise
        except Exception:
            _log.exception("unexpected_error")
            raise

    return Litestar(
        route_handlers=[ChatController, HealthController],
        dependencies={
            "service": Provide(lambda: service, sync_to_thread=False),
            "settings": Provide(lambda: settings, sync_to_thread=False),
        },
        cors_config=_cors(settings),
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lifespan],
        openapi_config=openapi_config(),
        plugins=[TelemetryPlugin(settings), WireSchemas()],
        request_class=ChatAPIRequest,
        request_max_body_size=MAX_BODY_BYTES,
    )


def _cors(settings: Settings) -> CORSConfig | None:
    """Let the pages of the given origins call, and read the headers that they need."""
    if settings.cors_origins is None:
        return None
    return CORSConfig(
        allow_origins=settings.cors_origins.split(","),
        allow_methods=["GET", "POST"],
        expose_headers=["X-Correlation-ID", "Retry-After"],
    )


def _providers(settings: Settings) -> Iterator[EmbeddedProvider | UpstreamProvider]:
    """Make the provider, and its fallback where there is one."""
    if settings.embedded:
        yield EmbeddedProvider(settings)
    else:
        yield _upstream(settings, settings.openai_base_url, settings.openai_api_key, settings.model)
    if settings.fallback_model:
        base_url = settings.fallback_base_url or settings.openai_base_url
        key = settings.fallback_api_key or (None if settings.fallback_base_url else settings.openai_api_key)
        yield _upstream(settings, base_url, key, settings.fallback_model)


def _upstream(settings: Settings, base_url: str | None, key: Secret | None, model: str | None) -> UpstreamProvider:
    return UpstreamProvider(
        base_url=base_url or OPENAI_BASE_URL,
        api_key=key.reveal() if key else None,
        model_name=model or "",
        instructions=settings.system_prompt,
        temperature=settings.temperature,
        connect_timeout_s=settings.connect_timeout_s,
    )
