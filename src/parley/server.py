"""The server: uvicorn's options, its workers, and the start of the app."""

from __future__ import annotations

import gc
import ipaddress
import math
import signal
import socket
import sys
from contextlib import contextmanager
from functools import partial
from multiprocessing.resource_tracker import ensure_running
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import uvicorn
from anyio.from_thread import start_blocking_portal
from uvicorn.supervisors import Multiprocess

from parley import descriptors
from parley.agent.errors import AgentError
from parley.chat.watch import Untraced
from parley.connection import Connection
from parley.descriptors import ConnectionLimit
from parley.listener import LISTEN_QUEUE, Loop
from parley.providers.embedded import Address, EmbeddedModelError, EmbeddedUpstream
from parley.providers.upstream import MAX_STREAMS
from parley.settings import Settings
from parley.telemetry import logs
from parley.telemetry.metrics import metrics
from parley.telemetry.worker_metrics import count_here

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from litestar import Litestar

_log: Final = structlog.stdlib.get_logger(__name__)

_START_FAILED: Final = 3
# Seconds for a worker to answer a health check. A start takes several seconds, and longer on a busy machine.
_WORKER_TIMEOUT_S: Final = 30
# At shutdown, Parley ends the open replies after `drain_timeout_s`; uvicorn cuts their connections this much later.
_GRACE_S: Final = 5


def serve(settings: Settings, unknown: Iterable[tuple[str, str | None]]) -> None:
    """Serve until a signal arrives; warn of `unknown` variables, each with the setting that was probably meant.

    Raises:
        SystemExit: with code 3, if Parley cannot start; the reason is logged.
    """
    logs.configure(settings)
    descriptors.raise_limit(_upstream_connections(settings))
    for name, meant in unknown:
        _log.warning("unknown_setting", setting=name, did_you_mean=meant)
    if settings.embedded and settings.openai_api_key is not None:
        reason, remedy = "OPENAI_API_KEY is set, but PARLEY_MODEL is not", "set PARLEY_MODEL to a model of the upstream"
        _log.warning("upstream_not_used", reason=reason, remedy=remedy)
    if not settings.keys() and not _is_loopback(settings.host):
        _log.critical("open_to_everybody", host=settings.host, remedy="set PARLEY_API_KEYS, or listen on 127.0.0.1")
    with _listening(settings) as listener:
        settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
        if settings.workers == 1:
            uvicorn.Server(uvicorn.Config(_create_app(settings), **options(settings))).run([listener])
        else:
            _serve_with_workers(settings, listener)


def options(settings: Settings) -> dict[str, Any]:
    """Return the options of `uvicorn.Config`."""
    limit = ConnectionLimit.beside(_upstream_connections(settings))
    return {
        "access_log": False,
        "http": partial(
            Connection, read_timeout_s=settings.read_timeout_s, write_timeout_s=settings.write_timeout_s, limit=limit
        ),
        "log_config": None,
        # On Windows, only asyncio's default loop can start processes, such as the embedded model's.
        "loop": "asyncio" if sys.platform == "win32" else partial(Loop, limit),
        "forwarded_allow_ips": settings.trusted_proxies,
        "proxy_headers": settings.trusted_proxies is not None,
        "server_header": False,
        "timeout_worker_healthcheck": _WORKER_TIMEOUT_S,
        "timeout_keep_alive": settings.keep_alive_s,
        "timeout_graceful_shutdown": math.ceil(settings.drain_timeout_s) + _GRACE_S,
        "workers": settings.workers,
        "ws": "none",
    }


def _upstream_connections(settings: Settings) -> int:
    """Return the maximum number of upstream connections, including idle ones that stay open for a while."""
    streams = settings.max_streams or MAX_STREAMS
    return 2 * streams if settings.fallback_model else streams


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(settings: Settings) -> socket.socket:
    """Listen before the slow steps of the start, so that early clients wait; exit with code 3 if that fails."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=LISTEN_QUEUE)
    except (OSError, TypeError, UnicodeError) as error:  # a name or an address can be wrong in many ways
        why = str(getattr(error, "strerror", "it is no address")).partition(" (")[0]
        _log.critical("start_failed", reason=f"Parley cannot listen on {settings.host}, port {settings.port}: {why}.")
        raise SystemExit(_START_FAILED) from None


def _create_app(settings: Settings, embedded: Address | None = None) -> Litestar:
    """Return the app, or exit with code 3 if Parley cannot run the operator's agent."""
    from parley.app import create_app  # noqa: PLC0415  # the parent of workers has no app

    with _or_exit():
        app = create_app(settings, embedded)
    # The libraries create 400,000 objects that live as long as the process. Each full garbage collection that scans
    # them would block all streams for a tenth of a second.
    gc.collect()
    gc.freeze()
    return app


@contextmanager
def _or_exit() -> Iterator[None]:
    """If the agent or the embedded model fails to load in the block, log the reason and exit with code 3."""
    try:
        yield
    except (AgentError, EmbeddedModelError) as error:
        _log.critical("start_failed", reason=str(error))
        raise SystemExit(_START_FAILED) from None


class _WorkerApp(msgspec.Struct):
    """The app factory that is sent to each worker, so that all workers have the settings and keys of the start."""

    settings: Settings
    embedded: Address | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.settings, self.embedded)

    def __call__(self) -> Litestar:
        count_here()
        logs.configure(self.settings)
        return _create_app(self.settings, self.embedded)


def _received(settings: Settings, embedded: Address | None) -> _WorkerApp:
    """Return the factory in a worker, after the slow imports: until it is there, a signal simply ends the worker."""
    import_app()
    return _WorkerApp(settings, embedded)


def import_app() -> None:
    """Import the app with all its libraries, which takes seconds; a process that only starts workers need not."""
    gc.disable()  # importing creates 400,000 objects that stay; searching them for garbage takes 0.3 s
    import parley.app  # noqa: F401, PLC0415

    gc.enable()


class _Workers(Multiprocess):
    """uvicorn's supervisor of workers. Only this process receives SIGINT and SIGHUP: the workers block them."""

    def init_processes(self) -> None:
        with _held({signal.SIGINT, signal.SIGHUP}):
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        # Close this process's copies of the workers' pipe ends. Otherwise it would wait for a worker that has died.
        for process in self.processes:
            process.child_conn.close()
        before = [*self.processes]
        with _held({signal.SIGINT, signal.SIGHUP}):
            super().keep_subprocess_alive()
        for process in before:
            if process not in self.processes:
                metrics().worker_died()
                _log.error("worker_died", pid=process.pid, exit_code=process.exitcode)

    def terminate_all(self) -> None:
        for listener in self.sockets:  # refuse new connections; otherwise they would wait in the queue
            listener.close()
        super().terminate_all()


@contextmanager
def _held(signals: set[signal.Signals]) -> Iterator[None]:
    """Block these signals; processes that are started in the block never receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_with_workers(settings: Settings, listener: socket.socket) -> None:
    if settings.agent is not None:
        from parley.agent.loading import load  # noqa: PLC0415

        with _or_exit():  # once, so that not every worker fails for the same reason, and no model is loaded in vain
            load(settings.agent)
    app = _WorkerApp(settings)
    ensure_running()  # otherwise the first worker's start would do this, which unblocks SIGINT
    on_hangup = signal.getsignal(signal.SIGHUP)
    # From here on, the supervisor queues signals until it runs.
    workers = _Workers(uvicorn.Config(app, factory=True, **options(settings)), [listener])
    signal.signal(signal.SIGHUP, on_hangup)  # uvicorn would restart the workers, but with the same settings
    with _model_of_all(settings) as app.embedded:
        workers.run()
    if any(process.exitcode == _START_FAILED for process in workers.processes):
        raise SystemExit(_START_FAILED)


@contextmanager
def _model_of_all(settings: Settings) -> Iterator[Address | None]:
    """If the settings select the embedded model, run it from this process for all workers, or exit with code 3."""
    if not settings.embedded:
        yield None
        return
    model = EmbeddedUpstream(settings, metrics(), Untraced())
    with _or_exit(), start_blocking_portal() as portal, portal.wrap_async_context_manager(model) as opened:
        yield opened.address
