"""The reports for people: a table for the terminal, and one in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parley.evaluation.baseline import Baseline, Verdict, wilson

if TYPE_CHECKING:
    from parley.evaluation.results import CaseResult, Report

_WIDTH: Final = 140
"""The width if the output is not a terminal."""
_VERDICTS: Final = {0: "Not worse.", 1: "Worse.", 2: "Could not be judged."}


def summary(report: Report, verdict: Verdict) -> list[str]:
    """Return the lines of the summary; the first one is the verdict."""
    low, high = wilson(report.right, report.judged)
    share = report.right / report.judged if report.judged else 0
    all_of_them = report.passes_all
    whole = (
        f"{report.suite.name} ({report.suite.hash}), model {report.model}: {report.right} of {report.judged} answers "
        f"right, {share:.1%} (95% interval {low:.1%} to {high:.1%}), {report.late} late, {report.broken} not judged."
    )
    cost = (
        f"pass^{report.repeat} {'unknown' if all_of_them is None else format(all_of_them, '.1%')}; "
        f"{report.tokens('input_tokens'):,} tokens read, {report.tokens('output_tokens'):,} written; "
        f"{report.seconds:.1f} s."
    )
    return [_VERDICTS[verdict.exit_code], *verdict.reasons, whole, cost]


def show(report: Report, verdict: Verdict, baseline: Baseline | None, *, has_text: bool) -> None:
    """Print the table, the answers' texts if `has_text`, and the summary."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDTH
    head, *rows = _rows(report, baseline)
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(head):
        is_figure = 0 < number < len(head) - 1
        table.add_column(title, justify="right" if is_figure else "left", no_wrap=number < len(head) - 1)
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console.print(table)
    if has_text:
        for result, text in _texts(report):
            console.print(f"\n{result.case.id}:\n{_printable(text)}", soft_wrap=True)
    console.print("\n" + "\n".join(summary(report, verdict)), soft_wrap=True)


def markdown(report: Report, verdict: Verdict, baseline: Baseline | None, *, has_text: bool) -> str:
    """Return the same report as Markdown, with the summary first."""
    first, *others = summary(report, verdict)
    head, *rows = _rows(report, baseline)
    lines = [f"**{first}**", "", *(f"- {_escaped(line)}" for line in others), ""]
    lines += [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 2)} --- |"]
    lines += [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    if has_text:
        for result, text in _texts(report):
            lines += ["", f"`{result.case.id}`:", "", *(f"    {line}" for line in _printable(text).splitlines())]
    return "\n".join(lines) + "\n"


def _rows(report: Report, baseline: Baseline | None) -> list[list[str]]:
    k = report.repeat
    rows = [
        ["case", "right", *(["was"] if baseline else []), f"pass^{k}", "in time", "tokens", "first ms", "ms", "why"]
    ]
    for result in report.results:
        judged, passes = len(result.judged), result.passes_all(k)
        before = baseline.cases.get(result.case.id) if baseline else None
        rows.append(
            [
                result.case.id,
                f"{result.right}/{judged}",
                *([f"{before.right}/{before.judged}" if before else "new"] if baseline else []),
                _figure(passes, ".2f"),
                f"{result.in_time}/{judged}",
                _figure(result.output_tokens, ".0f"),
                _figure(result.first_token_ms, ".0f"),
                _figure(result.total_ms, ".0f"),
                "; ".join(f"{failure.expectation}: {failure.detail}" for failure in result.failures),
            ]
        )
    return rows


def _texts(report: Report) -> list[tuple[CaseResult, str]]:
    return [(result, attempt.answer.text) for result in report.results for attempt in result.attempts]


def _figure(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def _printable(text: str) -> str:
    """Remove the characters that could control a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _escaped(text: str) -> str:
    for character in "\\|*_<`[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
