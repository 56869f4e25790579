"""The timing of a reply."""

from __future__ import annotations

import asyncio

import pytest

from parley.chat.service import Stopwatch


async def test_each_duration_is_measured_from_its_own_start() -> None:
    """Queue, first token and total are measured from the start; a gap is measured from the text before it."""
    stopwatch = Stopwatch()
    await asyncio.sleep(10)
    stopwatch.turn()
    gaps_s = []
    for pause_s in (20, 3, 7):
        await asyncio.sleep(pause_s)
        gaps_s.append(stopwatch.text())
    await asyncio.sleep(5)
    timing = stopwatch.timing()
    assert gaps_s == [None, pytest.approx(3, abs=1), pytest.approx(7, abs=1)]
    assert [stopwatch.queue_ms, timing.first_token_ms, timing.total_ms] == [
        pytest.approx(10_000, abs=1000),
        pytest.approx(30_000, abs=1000),
        pytest.approx(45_000, abs=1000),
    ]
