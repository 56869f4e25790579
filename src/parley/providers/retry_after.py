"""Read how long an upstream asks to wait, in all the forms that upstreams use."""

from __future__ import annotations

import email.utils
import math
import re
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_S: Final = 3600
_NUMBER: Final = re.compile(r"[0-9]{1,13}(\.[0-9]{1,20})?")
# From these values on, a number is not a wait but a point in time, in seconds or milliseconds since 1970.
_LEAST_MOMENT_S: Final = 1_000_000_000
_LEAST_MOMENT_MS: Final = 1_000_000_000_000
# Such as 1h2m3.5s, 26s, 500ms.
_PARTS: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,20})?)(ms|h|m|s)")
_MILLI: Final = ("ms", "milli")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# Such as "Please try again in 7m12.5s", "retry after 26 seconds".
_IN_TEXT: Final = re.compile(
    r"(?:try again|retry|wait)[a-z ]{0,20} "
    r"(?:((?:[0-9]{1,6}(?:\.[0-9]{1,20})?(?:ms|[hms])){1,4})\b"
    r"|([0-9]{1,6}(?:\.[0-9]{1,20})?) ?(ms|milliseconds?|msecs?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b)"
)
# A suffix names the limit, such as OpenAI's `-tokens` and Cerebras's `-tokens-minute`; OpenRouter uses no suffix.
_RESET: Final = "x-ratelimit-reset"
_REMAINING: Final = "x-ratelimit-remaining"


def retry_after_s(headers: Mapping[str, str], in_body: str | None, text: str, *, is_limit: bool) -> int | None:
    """Return the seconds to wait, rounded up, from the headers, a field of the body, or its text.

    Return `None` if none of them says so, or if the wait is longer than an hour. `is_limit` says that a limit was
    reached, so that the headers about limits count, too.
    """
    wait = _retry_after(headers.get("Retry-After"))
    if wait is None:
        wait = _milliseconds(headers.get("retry-after-ms"))
    if wait is None:
        wait = _duration(in_body)
    if wait is None and is_limit:
        wait = _reset(headers)
    if wait is None and (match := _IN_TEXT.search(text)):
        parts, number, unit = match.groups()
        wait = _duration(parts) if parts else float(number) * _UNITS_S["ms" if unit.startswith(_MILLI) else unit[0]]
    return math.ceil(wait) if wait is not None and 0 < wait <= _LONGEST_S else None


def _retry_after(value: str | None) -> float | None:
    """Read a number of seconds, possibly with a fraction, or a date; return seconds from now."""
    if not value or _NUMBER.fullmatch(value):
        return _duration(value)
    try:
        return email.utils.parsedate_to_datetime(value[:100]).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return None


def _milliseconds(value: str | None) -> float | None:
    return float(value) / 1000 if value and _NUMBER.fullmatch(value) else None


def _duration(value: str | None) -> float | None:
    """Read a number of seconds, a point in time, or parts with units; return seconds from now."""
    if not value:
        return None
    if _NUMBER.fullmatch(value):
        number = float(value)
        moment = number / 1000 if number >= _LEAST_MOMENT_MS else number
        return moment - time.time() if moment >= _LEAST_MOMENT_S else number
    parts = _PARTS.findall(value[:100])
    is_whole = "".join(number + unit for number, unit in parts) == value
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts) if parts and is_whole else None


def _reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the used-up limit resets; if the headers do not say which it is, until the last does."""
    names = [name.lower() for name in headers]
    limits = [name.removeprefix(_RESET) for name in names if name.startswith(_RESET)]
    resets = {limit: _duration(headers.get(f"{_RESET}{limit}")) for limit in limits}
    known = {limit: wait for limit, wait in resets.items() if wait is not None}
    used_up = [wait for limit, wait in known.items() if headers.get(f"{_REMAINING}{limit}") == "0"]
    return max(used_up or [wait for wait in known.values() if wait <= _LONGEST_S], default=None)
