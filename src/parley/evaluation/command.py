"""The `parley eval` command: run a suite, show and write its reports, and return whether the answers got worse."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import AsyncExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
from rich.console import Console
from rich.progress import Progress

from parley.evaluation import baseline, report_files, report_tables
from parley.evaluation.answers import TIMEOUT
from parley.evaluation.cases import Case, Suite, SuiteError, load
from parley.evaluation.results import Report, run
from parley.evaluation.serving import ServingError, serving

if TYPE_CHECKING:
    import argparse

_NOT_JUDGED: Final = 2


def evaluate(options: argparse.Namespace, key: str | None) -> int:
    """Run the suite that the options name, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # replace characters that the terminal cannot show
    # Treat SIGTERM like Ctrl-C, so that the Parley that this command started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        suite = load(options.suite)
        cases = suite.only(options.tag, options.case)
        before = baseline.read(options.baseline) if options.baseline else None
        report = asyncio.run(_run(options, suite, cases, key))
        if before is not None:
            verdict = baseline.compare(report, before)
        elif options.write_baseline:
            verdict = baseline.Verdict(is_worse=False, is_judged=not report.broken, reasons=[])
        else:
            verdict = baseline.judge_without_baseline(report)
        report_tables.show(report, verdict, before, has_text=options.show_text)
        _write(options, report, verdict, before)
    except (SuiteError, ServingError) as error:
        return _fail(str(error))
    except httpx.InvalidURL:
        return _fail(f"{options.url}: is no address.")
    except OSError as error:
        return _fail(f"{error.filename or 'The terminal'}: cannot be written: {error.strerror}.")
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  # Python would exit with 1, which means worse answers
        return _fail(f"The evaluation failed: {type(error).__name__}.")
    return verdict.exit_code


async def _run(options: argparse.Namespace, suite: Suite, cases: list[Case], key: str | None) -> Report:
    mounts = dict.fromkeys(("all://127.0.0.1", "all://localhost"))  # use no proxy for this machine
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Show a progress bar only on a terminal.
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    async with AsyncExitStack() as stack:
        url = options.url or await stack.enter_async_context(serving())
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT, mounts=mounts)
        )
        with progress:
            task = progress.add_task(suite.name, total=len(cases) * options.repeat)
            started = time.perf_counter()
            results = await run(
                suite,
                cases,
                client,
                repeat=options.repeat,
                jobs=options.jobs,
                tell=lambda: progress.advance(task),
            )
    return Report(suite=suite, results=results, repeat=options.repeat, seconds=time.perf_counter() - started)


def _write(
    options: argparse.Namespace, report: Report, verdict: baseline.Verdict, before: baseline.Baseline | None
) -> None:
    if options.markdown:
        text = report_tables.markdown(report, verdict, before, has_text=options.show_text)
        Path(options.markdown).write_text(text, "utf-8")
    if options.junit:
        Path(options.junit).write_bytes(report_files.junit(report, has_text=options.show_text))
    if options.jsonl:
        Path(options.jsonl).write_bytes(report_files.json_lines(report))
    if options.write_baseline:
        if report.broken:
            raise SuiteError(f"{options.write_baseline}: is not written: some answers could not be judged.")
        baseline.write(options.write_baseline, baseline.Baseline.of(report))


def _fail(message: str) -> int:
    sys.stderr.write(f"parley: {message}\n")
    return _NOT_JUDGED
