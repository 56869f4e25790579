"""Measures what a token costs in Parley and in its references, in the same run: `just bench`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from tests.bench.load import Load, percentile, run
from tests.support.process import environment, resident_kb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.load import Result

OURS, AS_IT_COMES, PASS_THROUGH, DIRECT = "parley", "as it comes", "pass-through", "no server"
SYSTEMS: Final = (AS_IT_COMES, PASS_THROUGH, OURS, DIRECT)

SCENARIOS: Final = {
    "burst": Load(streams=50, tokens=200),
    "paced": Load(streams=100, tokens=200, rate=50),
    "crowd": Load(streams=1000, tokens=200, rate=10, arrivals=100),
    "one": Load(streams=120, tokens=20, arrivals=40),
    "long": Load(streams=10, tokens=2000),
    "history": Load(streams=50, tokens=200, history=100),
    "complete": Load(streams=50, tokens=200, path="/chat/complete"),
}
# Bursts are too short for a single measurement.
REPEATS: Final = {"burst": 5, "long": 3, "history": 2, "complete": 5}


COLUMNS: Final = (
    "",
    "CPU µs/token (spread)",
    "to as it comes",
    "to pass-through",
    "tokens/s",
    "first token added p50/p95/p99, ms",
    "gap p99, ms",
    "KB/stream, most",
    "errors",
)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A process that serves; the figures include all its children."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port
        self.idle_kb = 0

    def cpu_s(self) -> float:
        """Return the CPU time so far, user and system, of all threads, in seconds."""
        return sum(
            int(path.read_text().split()[0]) / 1e9
            for pid in self._tree()
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )

    def resident_kb(self) -> int:
        """Return the resident memory, in KiB."""
        return sum(map(resident_kb, self._tree()))

    def _tree(self) -> Iterator[int]:
        pids = [self._process.pid]
        for pid in pids:
            yield pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())


@contextmanager
def serving(port: int, *command: str, **variables: str) -> Iterator[Server]:
    """Run a server until the block ends."""
    env = environment(PARLEY_LOG_LEVEL="info", **variables)
    process = subprocess.Popen([sys.executable, *command], env=env, stdout=subprocess.DEVNULL)  # noqa: S603  # our own
    try:
        yield Server(process, port)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def answers(port: int) -> None:
    """Wait until the port accepts connections."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)  # another process sends no event when it listens
            else:
                writer.close()
                return


@dataclass
class Measurement:
    """One system in one scenario, with one figure per round."""

    cpu_us: list[float] = field(default_factory=list)
    tokens_s: list[float] = field(default_factory=list)
    stream_kb: list[float] = field(default_factory=list)
    errors: int = 0
    first_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def add(self, results: list[Result], cpu_s: float, grown_kb: float, streams: int) -> None:
        """Add the results of a round."""
        tokens = sum(result.tokens for result in results)
        self.errors += sum(result.errors for result in results)
        self.cpu_us.append(cpu_s / max(tokens, 1) * 1e6)
        self.tokens_s.append(tokens / sum(result.wall_s for result in results))
        self.stream_kb.append(grown_kb / streams)
        for result in results:
            self.first_token_s += result.first_token_s
            self.gaps_s += result.gaps_s

    def summary(self) -> dict[str, float]:
        """Return the medians, the range of the CPU costs, and the percentiles over all rounds."""
        return {
            "cpu_us_per_token": statistics.median(self.cpu_us),
            "cpu_us_per_token_min": min(self.cpu_us),
            "cpu_us_per_token_max": max(self.cpu_us),
            "tokens_per_s": statistics.median(self.tokens_s),
            "kb_per_stream": max(self.stream_kb),
            "errors": self.errors,
            **{f"first_token_ms_p{p}": percentile(self.first_token_s, p) * 1000 for p in (50, 95, 99)},
            "gap_ms_p99": percentile(self.gaps_s, 99) * 1000,
        }


async def largest_kb(server: Server) -> float:
    """Sample the memory until cancelled, and return its maximum."""
    largest = 0
    try:
        while True:
            largest = max(largest, server.resident_kb())
            await asyncio.sleep(0.25)  # the interval of the samples
    except asyncio.CancelledError:
        return largest


async def measure(server: Server, name: str, measurement: Measurement) -> None:
    """Run a scenario once against a system."""
    load = SCENARIOS[name]
    cpu_s = server.cpu_s()
    watch = asyncio.create_task(largest_kb(server))
    results = [await run(load, server.port) for _ in range(REPEATS.get(name, 1))]
    cpu_s = server.cpu_s() - cpu_s
    watch.cancel()
    measurement.add(results, cpu_s, await watch - server.idle_kb, load.streams)


async def main() -> None:
    """Measure, print the tables, and write the JSON file if one is given."""
    parser = argparse.ArgumentParser(prog="just bench", description="What does a token cost?")
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="by comma")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    systems = options.systems.split(",")

    upstream, *ports = (free_port() for _ in range(4))
    uvicorn = ("-m", "uvicorn", "--log-level", "warning", "--port")
    references = "tests.bench.references"
    commands = {
        AS_IT_COMES: (*uvicorn, str(ports[0]), "--factory", f"{references}:as_it_comes"),
        PASS_THROUGH: (*uvicorn, str(ports[1]), f"{references}:pass_through"),
        OURS: ("-m", "parley"),
    }
    variables = {
        "BENCH_UPSTREAM_PORT": str(upstream),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "PARLEY_MODEL": "bench-1",
        "PARLEY_PORT": str(ports[2]),
        "PARLEY_MAX_STREAMS": "2000",
        "PARLEY_REQUEST_TIMEOUT_S": "300",
    }
    measurements: dict[str, dict[str, Measurement]] = defaultdict(lambda: defaultdict(Measurement))
    with ExitStack() as stack:
        direct = stack.enter_context(serving(upstream, "-m", "tests.bench.upstream", str(upstream)))
        await answers(upstream)
        servers = {DIRECT: direct}
        for (system, command), port in zip(commands.items(), ports, strict=True):
            if system in systems:
                servers[system] = stack.enter_context(serving(port, *command, **variables))
                await answers(port)
                await run(SCENARIOS["burst"], port)  # to warm up
                servers[system].idle_kb = servers[system].resident_kb()
        for name in options.scenarios:
            for number in range(options.rounds):
                for system in systems:
                    if name == "complete" and system in {AS_IT_COMES, PASS_THROUGH}:
                        continue  # they have no such operation
                    print(f"{name}, round {number + 1}: {system}", file=sys.stderr)  # noqa: T201
                    await measure(servers[system], name, measurements[name][system])

    summaries = {name: {system: m.summary() for system, m in of.items()} for name, of in measurements.items()}
    for name, of in summaries.items():
        print(table(name, of))  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps(summaries, indent=2))


def table(name: str, of: dict[str, dict[str, float]]) -> str:
    """Return a scenario's figures as a Markdown table."""
    load = SCENARIOS[name]
    pace = f"{load.rate} a second" if load.rate else "as fast as may be"
    lines = [
        "",
        f"**{name}**: {load.streams} streams of {load.tokens} tokens, {pace}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for system, figures in of.items():
        if system == DIRECT:
            continue
        cost = figures["cpu_us_per_token"]
        ratios = [
            f"1/{of[other]['cpu_us_per_token'] / cost:.1f}"
            if other == AS_IT_COMES
            else f"{cost / of[other]['cpu_us_per_token']:.1f}"
            if other in of
            else ""
            for other in (AS_IT_COMES, PASS_THROUGH)
            if other in of
        ]
        ratios += [""] * (2 - len(ratios))
        added = "/".join(
            f"{figures[key] - of.get(DIRECT, {}).get(key, 0):.1f}" for key in figures if key.startswith("first_token")
        )
        lines.append(
            f"| {system} | {cost:.1f} ({figures['cpu_us_per_token_min']:.1f} to {figures['cpu_us_per_token_max']:.1f})"
            f" | {ratios[0]} | {ratios[1]} | {figures['tokens_per_s']:,.0f} | {added} | {figures['gap_ms_p99']:.1f}"
            f" | {figures['kb_per_stream']:.0f} | {figures['errors']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    uvloop.run(main())
