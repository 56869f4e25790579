"""The telemetry plugin, which adds logs, correlation ids, metrics and traces to the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from litestar.plugins import InitPlugin

from parley.chat.watch import Untraced
from parley.telemetry import logs, request_log
from parley.telemetry.correlation import CorrelationMiddleware
from parley.telemetry.metrics import metrics

if TYPE_CHECKING:
    from litestar import Litestar
    from litestar.config.app import AppConfig

    from parley.chat.record import Record
    from parley.chat.watch import Tracer
    from parley.settings import Settings
    from parley.telemetry.traces import Traces

_log: Final = structlog.stdlib.get_logger(__name__)


class TelemetryPlugin(InitPlugin):
    """Configures the logs of the process, and wraps the app in the middleware for telemetry."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._traces = _traces(settings)
        self.tracer: Tracer = self._traces or Untraced()

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Configure the logs, and add hooks and middleware to the app."""
        logs.configure(self._settings)
        app_config.logging_config = None  # Litestar's own configuration would take over the root logger
        app_config.on_startup = [self._wrap, *app_config.on_startup]
        app_config.on_shutdown = [*app_config.on_shutdown, logs.settle]
        app_config.middleware = [metrics().middleware, *app_config.middleware]
        if self._traces is not None:
            app_config.lifespan = [self._traces.exporting, *app_config.lifespan]
        elif self._settings.traces_url is not None:
            # The variable may be set for a whole cluster, so it is no reason to refuse to start.
            _log.warning("no_traces", reason="OpenTelemetry is not installed", remedy="install `parley[otel]`")
        return app_config

    def _wrap(self, app: Litestar) -> None:
        # `middleware=` would not run for 404 and 405, which Litestar answers before it has found a route.
        app.asgi_handler = CorrelationMiddleware(app.asgi_handler, self._done)
        if self._traces is not None:
            app.asgi_handler = self._traces.middleware(app.asgi_handler)

    def _done(self, record: Record, took_s: float) -> None:
        metrics().count(record, took_s)
        if self._traces is not None:
            self._traces.describe(record)
        request_log.write(record)


def _traces(settings: Settings) -> Traces | None:
    if settings.traces_url is None:
        return None
    try:
        # Imported only if traces are on, as it imports a hundred modules.
        from parley.telemetry.traces import Traces  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    return Traces(settings.traces_url)
