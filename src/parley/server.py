"""Owns the server: uvicorn, and how it is told to run the app."""

from __future__ import annotations

import gc
import ipaddress
import math
import os
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import uvicorn
from anyio.from_thread import start_blocking_portal

from parley.app import create_app
from parley.chat.watch import Untraced
from parley.connection import Connection
from parley.environment import settings_from
from parley.providers.embedded import Address, EmbeddedModelError, EmbeddedProvider
from parley.telemetry import logs
from parley.telemetry.metrics import metrics
from parley.telemetry.workers import forget_the_dead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from litestar import Litestar

    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)

_START_FAILED: Final = 3
# Tells workers where the embedded model runs, in the environment that they have in common.
_EMBEDDED: Final = "_PARLEY_EMBEDDED_MODEL"
# Seconds in which a worker has to show that it lives; it takes some to start, and more where much else runs.
_WORKER_TIMEOUT_S: Final = 30
# Seconds for answers to end in when they have been told to, before uvicorn cuts them.
_GRACE_S: Final = 5


def options(settings: Settings) -> dict[str, Any]:
    """Return the options of `uvicorn.run` and `uvicorn.Config`."""
    return {
        "access_log": False,
        "host": settings.host,
        "http": partial(Connection, read_timeout_s=settings.read_timeout_s, write_timeout_s=settings.write_timeout_s),
        "log_config": None,
        "loop": "asyncio",
        "port": settings.port,
        "forwarded_allow_ips": settings.trusted_proxies,
        "proxy_headers": settings.trusted_proxies is not None,
        "server_header": False,
        "timeout_worker_healthcheck": _WORKER_TIMEOUT_S,
        "timeout_graceful_shutdown": math.ceil(settings.drain_timeout_s) + _GRACE_S,
        "workers": settings.workers,
        "ws": "none",
    }


def create_app_from_environment() -> Litestar:
    """Assemble the application in a worker process, which has the environment in common with its parent."""
    forget_the_dead()
    embedded = os.environ.get(_EMBEDDED)
    address = msgspec.json.decode(embedded, type=Address) if embedded else None
    return _create_app(settings_from(os.environ), address)


def _create_app(settings: Settings, embedded: Address | None = None) -> Litestar:
    app = create_app(settings, embedded)
    # The libraries make 400,000 objects that live as long as the process. Each look through them, in search of
    # garbage, would hold up all streams for a tenth of a second.
    gc.collect()
    gc.freeze()
    return app


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(settings: Settings, unknown: Iterable[tuple[str, str | None]]) -> None:
    """Serve until a signal ends it; warn of the `unknown` variables, each with the setting that may be meant.

    Raises:
        SystemExit: with code 3, where it cannot start; why is logged.
    """
    logs.configure(settings)
    for name, meant in unknown:
        _log.warning("unknown_setting", setting=name, did_you_mean=meant)
    if not settings.keys() and not _is_loopback(settings.host):
        _log.critical("open_to_everybody", host=settings.host, remedy="set PARLEY_API_KEYS, or listen on 127.0.0.1")
    if settings.workers == 1:
        uvicorn.run(_create_app(settings), **options(settings))
    else:
        with _model_of_all(settings):
            uvicorn.run(f"{__name__}:{create_app_from_environment.__name__}", factory=True, **options(settings))


@contextmanager
def _model_of_all(settings: Settings) -> Iterator[None]:
    """Run the embedded model, if it is what answers, in this process, which outlives its workers.

    Raises:
        SystemExit: with code 3, where it cannot start.
    """
    if not settings.embedded:
        yield
        return
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        try:
            provider = stack.enter_context(
                portal.wrap_async_context_manager(EmbeddedProvider(settings, metrics(), Untraced()))
            )
        except EmbeddedModelError as error:
            _log.critical("start_failed", reason=str(error))
            raise SystemExit(_START_FAILED) from None
        os.environ[_EMBEDDED] = msgspec.json.encode(provider.address).decode()
        yield
