"""Twice the load that Parley can bear, as in the benchmark; this checks the outcome of each request, not the speed."""

from __future__ import annotations

from tests.bench.overload import measure


async def test_under_twice_the_load_every_request_is_answered_or_refused() -> None:
    """There are complete answers and `overloaded` errors, some of both, and nothing else."""
    unloaded, overloaded = await measure(seconds=1)
    assert set(unloaded.outcomes) == {"done"}
    assert set(overloaded.outcomes) == {"done", "503 overloaded"}
