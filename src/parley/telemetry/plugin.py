"""Owns the telemetry plugin: one line in the app's configuration brings logs, correlation ids and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar.plugins import InitPlugin
from litestar.plugins.prometheus import PrometheusConfig

from parley.telemetry import logs, request_log
from parley.telemetry.correlation import CorrelationMiddleware
from parley.telemetry.metrics import metrics

if TYPE_CHECKING:
    from litestar import Litestar
    from litestar.config.app import AppConfig

    from parley.settings import Settings
    from parley.telemetry.request_log import RequestLog


class TelemetryPlugin(InitPlugin):
    """Configures structlog for the process, and wraps the app in the correlation middleware."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Configure."""
        logs.configure(self._settings)
        app_config.logging_config = None  # Litestar's own would take the root logger
        app_config.on_startup = [_wrap, *app_config.on_startup]
        app_config.middleware = [
            PrometheusConfig(app_name="parley", prefix="parley_http", group_path=True).middleware,
            *app_config.middleware,
        ]
        return app_config


def _wrap(app: Litestar) -> None:
    # `middleware=` would be skipped by 404 and 405, which Litestar answers before it has a route.
    app.asgi_handler = CorrelationMiddleware(app.asgi_handler, _done)


def _done(line: RequestLog) -> None:
    metrics().count(line)
    request_log.write(line)
