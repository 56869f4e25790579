"""Owns what the same model is asked again for, by openai-agents, before the first text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agents import RetryDecision

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from parley.chat.run import Run

# What may have passed within a second or two; so may an upstream's HTTP error.
_PASSING: Final = {ErrorCode.UPSTREAM_RATE_LIMITED, ErrorCode.UPSTREAM_UNREACHABLE, ErrorCode.UPSTREAM_TRUNCATED}
_LONGEST_RETRY_AFTER_S: Final = 5


def decide_retry(error: Exception, run: Run) -> RetryDecision:
    """Decide whether, and in how many seconds, to ask again; without a number, in openai-agents' own time."""
    if not isinstance(error, ChatError) or run.deltas:
        return RetryDecision(retry=False)
    is_passing = error.code in _PASSING or (
        error.code is ErrorCode.UPSTREAM_ERROR and error.upstream_status is not None and error.explanation.retryable
    )
    delay_s = error.retry_after_s or 0
    return RetryDecision(
        retry=is_passing and delay_s <= _LONGEST_RETRY_AFTER_S and run.has_time(delay_s), delay=error.retry_after_s
    )
