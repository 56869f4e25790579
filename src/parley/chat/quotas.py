"""Quotas: requests and open replies per caller, tokens for all callers together, and when to retry."""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from parley.chat.errors import ChatError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from parley.chat.events import Usage
    from parley.chat.messages import Prompt
    from parley.settings import Settings

_MINUTE_S: Final = 60.0
_BYTES_PER_TOKEN: Final = 4
# The maximum that one reply can take from the token quota beyond its reservation, in minutes of the quota. An absurd
# token count from an upstream must not block Parley forever.
_MOST_MINUTES: Final = 60
# When this many callers are stored, evict those whose whole allowance is available again.
_SWEEP_ABOVE: Final = 10_000
_EVERY_CALLER: Final = ""


class Allowance:
    """A per-minute allowance for each caller, refilled continuously; any excess is deducted from the refill."""

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}
        self._many = _SWEEP_ABOVE

    def wait_s(self, caller: str, amount: float = 1) -> float:
        """Return the seconds until `amount`, or the whole allowance if that is less, is available."""
        return max(0.0, (min(amount, self.per_minute) - self._left_to(caller)) * _MINUTE_S / self.per_minute)

    def take(self, caller: str, amount: float = 1) -> None:
        """Deduct `amount`; a negative amount is given back."""
        if len(self._left) >= self._many:
            self._left = {name: left for name, left in self._left.items() if self._left_to(name) < self.per_minute}
            self._many = max(_SWEEP_ABOVE, 2 * len(self._left))  # avoids an O(n) sweep on every call
        self._left[caller] = self._left_to(caller) - amount, self._now()

    def _left_to(self, caller: str) -> float:
        left, then = self._left.get(caller, (self.per_minute, self._now()))
        return min(self.per_minute, left + (self._now() - then) * self.per_minute / _MINUTE_S)


class Quotas:
    """One process's limits: requests per minute and open replies per caller, and tokens per minute in all."""

    def __init__(
        self, settings: Settings, usual_stay_s: Callable[[], float], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the limits; `usual_stay_s` returns the seconds that a reply currently takes on average."""
        self._requests = Allowance(settings.requests_per_minute, now) if settings.requests_per_minute else None
        self._tokens = Allowance(settings.tokens_per_minute, now) if settings.tokens_per_minute else None
        self._most_at_once = settings.max_streams_per_caller
        self._at_once: Counter[str] = Counter()
        self._usual_stay_s = usual_stay_s

    @asynccontextmanager
    async def held(self, prompt: Prompt, costs: Callable[[], Sequence[Usage] | None]) -> AsyncIterator[None]:
        """Reserve what a reply may use; after the block, deduct what it did use.

        `costs` is called after the block, and returns the usage of each attempt that was answered. `None` means that
        no request reached an upstream; only then is the request given back to the caller. It counts even if the caller
        left before the answer began, because the upstream had the work.

        Raises:
            ChatError: if not enough is left of a quota.
        """
        caller, estimate = prompt.caller, _estimate(prompt)
        held = estimate + prompt.max_output_tokens
        self._check(caller, held)
        self._at_once[caller] += 1
        if self._requests:
            self._requests.take(caller)
        if self._tokens:
            self._tokens.take(_EVERY_CALLER, held)
        try:
            yield
        finally:
            self._at_once[caller] -= 1
            if not self._at_once[caller]:
                del self._at_once[caller]
            usages = costs()
            if self._requests and usages is None:
                self._requests.take(caller, -1)
            if self._tokens:
                spent = sum(_spent(usage, estimate) for usage in usages or ())
                self._tokens.take(_EVERY_CALLER, min(spent - held, _MOST_MINUTES * self._tokens.per_minute))

    def _check(self, caller: str, tokens: int) -> None:
        waits_s = {
            "streams_per_caller": self._usual_stay_s() / self._most_at_once
            if self._most_at_once and self._at_once[caller] >= self._most_at_once
            else 0,
            "requests_per_minute": self._requests.wait_s(caller) if self._requests else 0,
            "tokens_per_minute": self._tokens.wait_s(_EVERY_CALLER, tokens) if self._tokens else 0,
        }
        longest = max(waits_s, key=lambda reason: waits_s[reason])
        if waits_s[longest] > 0:
            raise ChatError(
                ErrorCode.RATE_LIMITED,
                detail=_DETAILS[longest],
                reason=longest,
                retry_after_s=math.ceil(waits_s[longest]),
            )


_DETAILS: Final = {
    "streams_per_caller": "This client has as many open requests as its quota allows.",
    "requests_per_minute": "This client has used up its requests for this minute.",
    "tokens_per_minute": "Parley has used up its tokens for this minute.",
}


def _estimate(prompt: Prompt) -> int:
    """Estimate the tokens of a prompt, which no upstream has counted yet."""
    return math.ceil(sum(len(message.content.encode()) for message in prompt.messages) / _BYTES_PER_TOKEN)


def _spent(usage: Usage, estimate: int) -> int:
    return (estimate if usage.input_tokens is None else usage.input_tokens) + (usage.output_tokens or 0)
