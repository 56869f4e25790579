"""Owns the server: uvicorn, and how it is told to run the app."""

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
from parley.agent.loading import AgentError, load
from parley.app import create_app
from parley.chat.watch import Untraced
from parley.connection import Connection
from parley.descriptors import ConnectionLimit
from parley.listener import LISTEN_QUEUE, Loop
from parley.providers.embedded import Address, EmbeddedModelError, EmbeddedUpstream
from parley.providers.upstream import MAX_STREAMS
from parley.settings import Settings
from parley.telemetry import logs
from parley.telemetry.metrics import metrics
from parley.telemetry.workers import count_here

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from litestar import Litestar

_log: Final = structlog.stdlib.get_logger(__name__)

_START_FAILED: Final = 3
# Seconds in which a worker has to show that it lives; it takes some to start, and more where much else runs.
_WORKER_TIMEOUT_S: Final = 30
# Seconds for answers to end in when they have been told to, before uvicorn cuts them.
_GRACE_S: Final = 5


def serve(settings: Settings, unknown: Iterable[tuple[str, str | None]]) -> None:
    """Serve until a signal ends it; warn of the `unknown` variables, each with the setting that may be meant.

    Raises:
        SystemExit: with code 3, where it cannot start; why is logged.
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
        # Windows has processes, such as the embedded model's, in another kind of loop only.
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
    """Return how many there are at most; one that is idle stays open for a while."""
    streams = settings.max_streams or MAX_STREAMS
    return 2 * streams if settings.fallback_model else streams


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(settings: Settings) -> socket.socket:
    """Listen before anything that takes time, so that early callers wait; exit with code 3 if that is not possible."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=LISTEN_QUEUE)
    except (OSError, TypeError, UnicodeError) as error:  # as names and addresses can be wrong in many ways
        why = str(getattr(error, "strerror", "it is no address")).partition(" (")[0]
        _log.critical("start_failed", reason=f"Parley cannot listen on {settings.host}, port {settings.port}: {why}.")
        raise SystemExit(_START_FAILED) from None


def _create_app(settings: Settings, embedded: Address | None = None) -> Litestar:
    """Make the app, or exit with code 3 if the operator's agent cannot be run."""
    with _or_exit():
        app = create_app(settings, embedded)
    # The libraries make 400,000 objects that live as long as the process. Each look through them, in search of
    # garbage, would hold up all streams for a tenth of a second.
    gc.collect()
    gc.freeze()
    return app


@contextmanager
def _or_exit() -> Iterator[None]:
    """Load the operator's agent or the embedded model in the block; exit with code 3 if that fails, and log why."""
    try:
        yield
    except (AgentError, EmbeddedModelError) as error:
        _log.critical("start_failed", reason=str(error))
        raise SystemExit(_START_FAILED) from None


class _WorkerApp(msgspec.Struct):
    """Makes the app in a worker, to which it is sent: all of them have the settings and keys of the start."""

    settings: Settings
    embedded: Address | None = None

    def __call__(self) -> Litestar:
        count_here()
        logs.configure(self.settings)
        return _create_app(self.settings, self.embedded)


class _Workers(Multiprocess):
    """uvicorn's supervisor of workers, which alone hears of Ctrl-C and of a terminal that closes."""

    def init_processes(self) -> None:
        with _held({signal.SIGINT, signal.SIGHUP}):
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        # With its end of their pipe open here, too, one that dies before it answers would be waited for.
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
        for listener in self.sockets:  # nobody else would refuse who calls now
            listener.close()
        super().terminate_all()


@contextmanager
def _held(signals: set[signal.Signals]) -> Iterator[None]:
    """Hold back these signals; processes that are started meanwhile never get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_with_workers(settings: Settings, listener: socket.socket) -> None:
    if settings.agent is not None:
        with _or_exit():  # once, before each worker would fail for the same reason, or a model is loaded in vain
            load(settings.agent)
    app = _WorkerApp(settings)
    ensure_running()  # else the first worker would start it, which lets go of a SIGINT that is held
    on_hangup = signal.getsignal(signal.SIGHUP)
    # From here on signals are kept, until it looks.
    workers = _Workers(uvicorn.Config(app, factory=True, **options(settings)), [listener])
    signal.signal(signal.SIGHUP, on_hangup)  # new workers would have the same settings, so there is no use in them
    with _model_of_all(settings) as app.embedded:
        workers.run()
    if any(process.exitcode == _START_FAILED for process in workers.processes):
        raise SystemExit(_START_FAILED)


@contextmanager
def _model_of_all(settings: Settings) -> Iterator[Address | None]:
    """Run the embedded model, if it is what answers, in this process, which outlives its workers, or exit."""
    if not settings.embedded:
        yield None
        return
    model = EmbeddedUpstream(settings, metrics(), Untraced())
    with _or_exit(), start_blocking_portal() as portal, portal.wrap_async_context_manager(model) as opened:
        yield opened.address
