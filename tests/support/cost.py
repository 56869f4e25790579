"""Measures what something costs a process, and how long other clients wait for its loop."""

from __future__ import annotations

import http.client
import statistics
import threading
import urllib.parse
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.process import Parley

_PROBES = 30
_PROBE_TIMEOUT_S = 20
_PAUSE_S = 0.01


@dataclass
class Cost:
    """What a process spent, without the probes; in CPU time, because a busy machine makes all other times longer."""

    cpu_s: float = 0.0
    growth_kb: int = 0
    """From the resident memory at the start to the peak."""
    stalls_s: list[float] = field(default_factory=list)
    """For each health probe, the CPU time of the loop's thread from request to response."""

    @property
    def stall_s(self) -> float:
        """The 99th percentile of the stalls."""
        return sorted(self.stalls_s)[int(len(self.stalls_s) * 0.99)]

    def __str__(self) -> str:
        stalls = f"{self.stall_s * 1e3:.0f} ms (at most {max(self.stalls_s) * 1e3:.0f}, {len(self.stalls_s)} probes)"
        return f"CPU {self.cpu_s:.2f} s, p99 stall {stalls}, {self.growth_kb / 1024:+.0f} MiB"


@contextmanager
def measuring(served: Parley) -> Iterator[Cost]:
    """Probe a Parley's health all the time, and measure what else it does meanwhile."""
    cost, pid = Cost(), served.process.pid
    address = urllib.parse.urlsplit(served.url).netloc
    is_over = threading.Event()
    for _ in range(_PROBES):
        _probe(address, pid)
    probe_s = statistics.mean(_probe(address, pid) for _ in range(_PROBES))

    def keep_probing() -> None:
        while not is_over.is_set():
            cost.stalls_s.append(_probe(address, pid))
            is_over.wait(_PAUSE_S)

    Path(f"/proc/{pid}/clear_refs").write_text("5")  # reset the peak
    before_kb, before_s = _kb(pid, "VmRSS"), _cpu_s(pid)
    prober = threading.Thread(target=keep_probing)
    prober.start()
    try:
        yield cost
    finally:
        is_over.set()
        prober.join()
        cost.cpu_s = _cpu_s(pid) - before_s - len(cost.stalls_s) * probe_s
        cost.growth_kb = _kb(pid, "VmHWM") - before_kb
        print(cost)  # noqa: T201  # the figures, for tests that fail, or for all with -rP


def _probe(address: str, pid: int) -> float:
    before_s = _cpu_s(pid, pid)
    connection = http.client.HTTPConnection(address, timeout=_PROBE_TIMEOUT_S)
    with suppress(OSError):  # the stall shows it
        connection.request("GET", "/health/live")
        connection.getresponse().read()
    connection.close()
    return _cpu_s(pid, pid) - before_s


def _cpu_s(pid: int, thread: int | None = None) -> float:
    """Return the CPU time of a process, or of one of its threads."""
    times = Path(f"/proc/{pid}/task").glob(f"{thread or '*'}/schedstat")
    return sum(int(time.read_text().split()[0]) for time in times) / 1e9


def _kb(pid: int, name: str) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition(f"{name}:")[2].split()[0])
