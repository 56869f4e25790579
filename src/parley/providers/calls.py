"""Ask the upstreams in order, with retries before the first token."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import structlog

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.run import Deadlines
from parley.providers.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parley.chat.run import Run
    from parley.providers.embedded import EmbeddedUpstream
    from parley.providers.exchange import CompletionRequest
    from parley.providers.upstream import Upstream

_log: Final = structlog.stdlib.get_logger(__name__)

# Codes of failures that may pass within a second or two; for other codes, `ChatError.is_transient` decides.
_TRANSIENT: Final = {ErrorCode.UPSTREAM_UNREACHABLE, ErrorCode.UPSTREAM_TRUNCATED}
# Failures worth trying the next upstream for, before the first token.
_ANOTHER_MAY_ANSWER: Final = _TRANSIENT | {
    ErrorCode.UPSTREAM_AUTH,
    ErrorCode.UPSTREAM_RATE_LIMITED,
    ErrorCode.UPSTREAM_ERROR,
    ErrorCode.UPSTREAM_FIRST_TOKEN_TIMEOUT,
}
_LONGEST_RETRY_AFTER_S: Final = 5
_FIRST_BACKOFF_S: Final = 0.25
_LONGEST_BACKOFF_S: Final = 2.0


class Upstreams:
    """The upstreams, in the order in which they are tried: each one only if all before it have failed."""

    def __init__(self, sources: Sequence[Upstream | EmbeddedUpstream]) -> None:
        self._sources = sources
        self.model_names = [source.model_name for source in sources]
        self.max_streams = sources[0].max_streams

    async def check(self) -> ErrorCode | None:
        """Return `None` if any upstream can be reached, otherwise the last one's problem."""
        problem = None
        for source in self._sources:
            problem = await source.check()
            if problem is None:
                break
        return problem

    async def begin(self, request: CompletionRequest, run: Run) -> tuple[Exchange, str | None]:
        """Return the exchange with the first upstream to answer, and its first text; raise `ChatError` if none does."""
        call = len(run.attempts)
        for number, source in enumerate(self._sources):
            try:
                return await _ask(source, request, run, call, is_fallback=number > 0)
            except ChatError as error:
                if source is self._sources[-1] or error.code not in _ANOTHER_MAY_ANSWER:
                    raise
                _log.warning("upstream_failed", model=source.model_name, error_code=error.code)
        raise AssertionError("there is no upstream")


async def _ask(
    source: Upstream | EmbeddedUpstream, request: CompletionRequest, run: Run, call: int, *, is_fallback: bool
) -> tuple[Exchange, str | None]:
    """Ask one upstream, up to the first token; retry transient failures, and raise `ChatError` if it still fails."""
    deadlines = Deadlines(run)
    upstream = source.upstream()
    attempt = upstream.attempt(request, call=call, is_fallback=is_fallback)
    span = upstream.tracer.begin(attempt)
    retries = run.settings.retries
    try:
        while True:
            run.attempts.append(attempt)
            exchange = Exchange(upstream, request, attempt, deadlines, span)
            try:
                await exchange.open()
                return exchange, await exchange.next()
            except BaseException as error:
                exchange.abandon(error)
                if not isinstance(error, ChatError):
                    raise
                attempt.was_sent = error.was_sent
                delay_s = _delay_s(error, run.settings.retries - retries)
                if attempt.deltas or not retries or not _is_transient(error) or not deadlines.has_time(delay_s):
                    raise
            retries -= 1
            upstream.watch.retrying(attempt.model)
            async with deadlines.limit():
                await asyncio.sleep(delay_s)
            attempt = upstream.attempt(request, call=call, is_fallback=is_fallback)
    except BaseException as error:
        span.end(error)
        raise


def _is_transient(error: ChatError) -> bool:
    is_soon = (error.retry_after_s or 0) <= _LONGEST_RETRY_AFTER_S  # a longer wait is passed on to the client
    return (error.is_transient or error.code in _TRANSIENT) and is_soon


def _delay_s(error: ChatError, retry: int) -> float:
    """Return the wait in seconds that the upstream asks for; without one, exponential backoff with jitter."""
    if error.retry_after_s is not None:
        return error.retry_after_s
    backoff_s: float = min(_FIRST_BACKOFF_S * 2**retry, _LONGEST_BACKOFF_S)
    return backoff_s * random.uniform(0.875, 1.125)  # noqa: S311  # jitter needs no secure randomness
