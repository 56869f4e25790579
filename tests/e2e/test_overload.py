"""Twice the load that Parley can bear, as in the benchmark, for what comes of each request and not for how fast."""

from __future__ import annotations

from tests.bench.overload import measure


async def test_under_twice_the_load_every_request_is_answered_or_refused() -> None:
    """Whole answers and `overloaded`, nothing else, and some of both."""
    unloaded, overloaded = await measure(seconds=1)
    assert set(unloaded.outcomes) == {"done"}
    assert set(overloaded.outcomes) == {"done", "503 overloaded"}
