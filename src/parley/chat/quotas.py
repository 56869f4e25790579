"""Owns quotas: how much each caller may ask for, and all of them may spend, and when there will be more."""

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
# Minutes of the budget that a reply may cost at most, beyond what was held for it: an upstream's absurd count must not
# close Parley for good.
_MOST_MINUTES: Final = 60
# When so many callers are remembered, those are forgotten who may take all again.
_MANY: Final = 10_000
_ALL: Final = ""


class Allowance:
    """So much a minute for each caller, which comes back steadily; what is taken beyond it is a debt to wait for."""

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}
        self._many = _MANY

    def wait_s(self, caller: str, amount: float = 1) -> float:
        """Return the seconds until so much may be taken; where it is more than ever, until all may be."""
        return max(0.0, (min(amount, self.per_minute) - self._left_to(caller)) * _MINUTE_S / self.per_minute)

    def take(self, caller: str, amount: float = 1) -> None:
        """Take so much; where it is negative, give it back."""
        if len(self._left) >= self._many:
            self._left = {name: left for name, left in self._left.items() if self._left_to(name) < self.per_minute}
            self._many = max(_MANY, 2 * len(self._left))  # or each of many callers would have all looked through
        self._left[caller] = self._left_to(caller) - amount, self._now()

    def _left_to(self, caller: str) -> float:
        left, then = self._left.get(caller, (self.per_minute, self._now()))
        return min(self.per_minute, left + (self._now() - then) * self.per_minute / _MINUTE_S)


class Quotas:
    """One process's limits: a caller's requests a minute and replies at once, and everybody's tokens a minute."""

    def __init__(
        self, settings: Settings, usual_stay_s: Callable[[], float], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the limits; `usual_stay_s` tells how long a reply takes, as things are."""
        self._requests = Allowance(settings.requests_per_minute, now) if settings.requests_per_minute else None
        self._tokens = Allowance(settings.tokens_per_minute, now) if settings.tokens_per_minute else None
        self._most_at_once = settings.max_streams_per_caller
        self._at_once: Counter[str] = Counter()
        self._usual_stay_s = usual_stay_s

    @asynccontextmanager
    async def held(self, prompt: Prompt, costs: Callable[[], Sequence[Usage] | None]) -> AsyncIterator[None]:
        """Hold what a reply may take; `costs` tells at its end what each model has cost that began to answer.

        `None` says that no request reached an upstream. Otherwise it counts, also if the caller left before the answer
        began: the upstream had the work.

        Raises:
            ChatError: where there is not enough left.
        """
        caller, estimate = prompt.caller, _estimate(prompt)
        held = estimate + prompt.max_output_tokens
        self._check(caller, held)
        self._at_once[caller] += 1
        if self._requests:
            self._requests.take(caller)
        if self._tokens:
            self._tokens.take(_ALL, held)
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
                self._tokens.take(_ALL, min(spent - held, _MOST_MINUTES * self._tokens.per_minute))

    def _check(self, caller: str, tokens: int) -> None:
        waits_s = {
            "streams_per_caller": self._usual_stay_s() / self._most_at_once
            if self._most_at_once and self._at_once[caller] >= self._most_at_once
            else 0,
            "requests_per_minute": self._requests.wait_s(caller) if self._requests else 0,
            "tokens_per_minute": self._tokens.wait_s(_ALL, tokens) if self._tokens else 0,
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
    """Guess the tokens of a prompt, before anybody has counted them."""
    return math.ceil(sum(len(message.content.encode()) for message in prompt.messages) / _BYTES_PER_TOKEN)


def _spent(usage: Usage, estimate: int) -> int:
    return (estimate if usage.input_tokens is None else usage.input_tokens) + (usage.output_tokens or 0)
