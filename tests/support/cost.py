"""Owns the measure of what something costs a process, and everybody else who waits for its loop."""

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
    """What a process spent beside the probes; CPU time, as a busy machine makes any other time long."""

    cpu_s: float = 0.0
    growth_kb: int = 0
    """From its resident memory to its peak."""
    stalls_s: list[float] = field(default_factory=list)
    """CPU time of the loop's thread from each probe of its health to the answer."""

    @property
    def stall_s(self) -> float:
        """The stall that 99% of the probes stayed below."""
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

    Path(f"/proc/{pid}/clear_refs").write_text("5")  # its peak is of what follows
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
        print(cost)  # noqa: T201  # the figures of the tests that fail, or with -rP of all


def _probe(address: str, pid: int) -> float:
    before_s = _cpu_s(pid, pid)
    connection = http.client.HTTPConnection(address, timeout=_PROBE_TIMEOUT_S)
    with suppress(OSError):  # the stall says it
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
