"""The documentation's tables that are made from the code; `python -m tests.support.tables` writes them.

A table is in a page, between `<!-- settings -->` and `<!-- /settings -->`, for example.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from parley.chat.errors import EXPLANATIONS
from parley.chat.record import Record
from parley.environment import variables
from parley.telemetry.metrics import metrics
from parley.wire.errors import STATUS
from parley.wire.schema import ChatRequest

DOCS: Final = Path(__file__).parents[2] / "docs"


def as_written(default: object) -> str:
    """Return a setting's default as an operator would write it."""
    match default:
        case None:
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case _:
            return str(default)


def _settings() -> Iterator[Iterable[str]]:
    yield "setting", "default", "meaning"
    for variable in variables():
        default = "" if variable.default is None else f"`{as_written(variable.default)}`"
        yield f"`{variable.name}`", default, f"{variable.description} Allowed: {variable.allowed}."


def _errors() -> Iterator[Iterable[str]]:
    yield "code", "status", "retryable", "why, and what to do"
    for code, told in EXPLANATIONS.items():
        yield f"`{code}`", f"{STATUS[code]:d}", "yes" if told.retryable else "no", f"{told.detail} {told.action}"


def _metrics() -> Iterator[Iterable[str]]:
    yield "metric", "type", "labels", "meaning"
    metrics()  # registers all metrics
    for collector in REGISTRY._collector_to_names:  # noqa: SLF001  # there is no public access to labels
        if isinstance(collector, MetricWrapperBase):
            (family,) = collector.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in collector._labelnames)  # noqa: SLF001  # also private
            yield f"`{name}`", family.type, labels, family.documentation


def _fields(kind: type) -> Iterator[Iterable[str]]:
    yield "field", "meaning"
    fields: dict[str, Any] = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    for name, field in fields.items():
        yield f"`{name}`", field["description"]


TABLES: Final[Mapping[str, Callable[[], Iterator[Iterable[str]]]]] = {
    "settings": _settings,
    "errors": _errors,
    "metrics": _metrics,
    "log-fields": lambda: _fields(Record),
    "request": lambda: _fields(ChatRequest),
}


def table(name: str) -> str:
    """Return a table as Markdown, with its markers."""
    head, *rows = [f"| {' | '.join(row)} |" for row in TABLES[name]()]
    line = re.sub(r"[^|]+", " --- ", head)
    return "\n".join([f"<!-- {name} -->", head, line, *rows, f"<!-- /{name} -->"])


def written(page: str) -> str:
    """Return a page with its tables made from the code."""
    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", lambda found: table(found[1]), page, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the paths of the documentation's pages."""
    return sorted(DOCS.glob("*.md"))


if __name__ == "__main__":
    for path in pages():
        path.write_text(written(path.read_text()))
