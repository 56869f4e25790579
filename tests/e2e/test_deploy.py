"""The alerts, the dashboard and the runbook, checked against a Prometheus that scrapes a working Parley."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest
import yaml

from parley.environment import variables
from parley.testing.faults import pause
from parley.testing.upstream import ScriptedUpstream, delta, respond
from tests.support.canaries import CANARY_KEY
from tests.support.faults import show_named
from tests.support.installed import need
from tests.support.process import leading_to, parley
from tests.support.prometheus import DEPLOY, Prometheus, prometheus, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import httpx

    from parley.testing.exchange import Exchange
    from tests.support.process import Parley

pytestmark = pytest.mark.long

ALERTS: dict[str, Any] = {
    rule["alert"]: rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
DASHBOARD = json.loads((DEPLOY / "grafana" / "parley.json").read_text())
RUNBOOK = (DEPLOY / "runbook.md").read_text()
CASES = DEPLOY.parent / "tests" / "e2e" / "alerts.yaml"

BUDGET = 300
SETTINGS = {
    "PARLEY_API_KEYS": CANARY_KEY,
    "PARLEY_FALLBACK_MODEL": "scripted-2",
    "PARLEY_FIRST_TOKEN_TIMEOUT_S": "3",
    "PARLEY_IDLE_TIMEOUT_S": "2",
    "PARLEY_MAX_OUTPUT_TOKENS": "1",
    "PARLEY_MAX_QUEUE": "1",
    "PARLEY_MAX_STREAMS": "1",
    "PARLEY_QUEUE_TIMEOUT_S": "1",
    "PARLEY_RETRIES": "0",
    "PARLEY_TOKENS_PER_MINUTE": str(BUDGET),
}
FAULTS = ("none", "length", "content_filter", "no_usage", "no_reason", "stall", "500", "401", "403", "429", "reset")

# The last event of the scene, scraped twice: a rate needs two samples of everything.
READY_TWICE = 'count_over_time(parley_http_requests_total{path="/health/ready",status_code="200"}[1m]) > 1'

SELECTOR = re.compile(r"\b(up|(?:parley|process)_\w+)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')


class Scene(NamedTuple):
    """A Parley in which everything has happened that the alerts and the dashboard distinguish, and its Prometheus."""

    prometheus: Prometheus
    metrics: str
    log: Path


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Play the scene once for all tests of this module."""
    need("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    async with (
        ScriptedUpstream() as upstream,
        parley(**leading_to(upstream, **SETTINGS)) as served,
        served.client() as client,
    ):
        upstream.models_script = respond(401, {})
        assert not await is_ready(client)  # Parley caches this result for 5 seconds
        upstream.models_script = respond(200, {})
        async with prometheus(served.url, CANARY_KEY, folder) as watching:
            await play(upstream, client)
            await until(lambda: watching.has(READY_TWICE))
            metrics = (await client.get("/metrics")).raise_for_status().text
            yield Scene(watching, metrics, logged(served, folder))


async def play(upstream: ScriptedUpstream, client: httpx.AsyncClient) -> None:
    """Make each event happen once."""
    assert (await client.post("/chat", json={"message": "none"})).status_code == 401
    client.headers["Authorization"] = f"Bearer {CANARY_KEY}"

    async def ask(message: str, **more: float) -> httpx.Response:
        return await client.post("/chat", json={"message": message, **more})

    upstream.script = paced
    await ask("Hi")
    upstream.script = show_named
    for fault in FAULTS:
        await ask(fault)
    await ask("")
    await ask("hang", timeout_s=0.1)
    upstream.received.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(ask, "hang")
        await upstream.next_exchange()
        group.start_soon(ask, "queue_timeout")
        group.start_soon(ask, "queue_full")
    await ask("none")
    assert (await ask("long" * BUDGET)).status_code == 429
    await until(lambda: is_ready(client))


async def is_ready(client: httpx.AsyncClient) -> bool:
    """Return whether Parley is ready."""
    return (await client.get("/health/ready")).status_code == 200


async def paced(exchange: Exchange) -> None:
    """Answer with a pause between two texts."""
    await exchange.head()
    await exchange.events(delta("a"))
    await pause(exchange, 0.1)
    await exchange.events(delta("b"), delta(finish_reason="stop"))
    await exchange.end()


def logged(served: Parley, folder: Path) -> Path:
    """Write the log to a file with the name that the runbook uses."""
    path = folder / "parley.log"
    path.write_text(served.logs.getvalue())
    return path


async def run(*command: str, given: str = "", folder: Path | None = None) -> str:
    """Run a program that must succeed, and return its output."""
    done = await anyio.run_process(command, input=given.encode(), cwd=folder, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


async def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    """Run promtool over the invented hours in alerts.yaml; each alert fires in at least one of them."""
    need("promtool")
    await run("promtool", "check", "rules", str(DEPLOY / "prometheus" / "alerts.yaml"))
    await run("promtool", "test", "rules", str(CASES))
    fired = set(re.findall(r'alertname="(\w+)"', CASES.read_text()))
    assert fired == ALERTS.keys()


@pytest.mark.parametrize("key", ["# authorization", "authorization"])
async def test_prometheus_takes_the_configuration(tmp_path: Path, key: str) -> None:
    """The check runs without a key and with one; Debian's Prometheus has no support for Kubernetes."""
    need("promtool")
    config = (DEPLOY / "prometheus" / "prometheus.yaml").read_text().replace("# authorization", key)
    await anyio.Path(tmp_path / "prometheus.yaml").write_text(config)
    await anyio.Path(tmp_path / "key").write_text(CANARY_KEY)
    await anyio.Path(tmp_path / "alerts.yaml").write_bytes((DEPLOY / "prometheus" / "alerts.yaml").read_bytes())
    await run("promtool", "check", "config", "prometheus.yaml", folder=tmp_path)


async def test_the_metrics_are_well_formed(scene: Scene) -> None:
    """Prometheus's own linter checks them."""
    need("promtool")
    await run("promtool", "check", "metrics", given=scene.metrics)


async def test_prometheus_evaluates_every_alert(scene: Scene) -> None:
    """No alert has an error."""
    groups = (await scene.prometheus.get("rules"))["groups"]
    assert {rule["name"]: rule["health"] for group in groups for rule in group["rules"]} == dict.fromkeys(ALERTS, "ok")


async def test_every_alert_looks_at_what_there_is(scene: Scene) -> None:
    """Each metric, each label and each label value that an alert names has been scraped."""
    looked_at = {selector for alert in ALERTS.values() for selector in selectors(alert["expr"])}
    assert {selector for selector in looked_at if not await scene.prometheus.has(selector)} == set()


async def test_every_panel_shows_something(scene: Scene) -> None:
    """Each expression has a value, and so does each metric that it uses."""
    expressions = [shown(target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert [expression for expression in expressions if not await scene.prometheus.has(expression)] == []
    looked_at = {selector for expression in expressions for selector in selectors(expression)}
    missing = {selector for selector in looked_at if not await scene.prometheus.has(selector)}
    assert missing == set()
    for annotation in DASHBOARD["annotations"]["list"]:
        await scene.prometheus.get("query", query=shown(annotation["expr"]))


def shown(expression: str) -> str:
    """Replace Grafana's variables as Grafana does."""
    return expression.replace("$__rate_interval", "5m").replace("$instance", ".+")


def selectors(expression: str) -> Iterator[str]:
    """Yield the selectors of an expression, one for each label value that it names."""
    for name, matchers in SELECTOR.findall(expression):
        labels = [[f'{label}=~"{value}"' for value in values.split("|")] for label, values in MATCHER.findall(matchers)]
        for chosen in product(*labels):
            yield f"{name}{{{','.join(chosen)}}}"


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Its panels use the chosen data source, have unique ids, and do not overlap."""
    panels = DASHBOARD["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    squares = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(squares)) == len(squares)
    assert max(x for x, _ in squares) < 24


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """The sections have the order and severities of the alerts, and each alert links to its section."""
    assert re.findall(r"^## (\w+)\n\n\*(\w+):", RUNBOOK, re.MULTILINE) == [
        (name, alert["labels"]["severity"].capitalize()) for name, alert in ALERTS.items()
    ]
    assert len(re.findall(r"^## ", RUNBOOK, re.MULTILINE)) == len(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["annotations"]["runbook"] == f"deploy/runbook.md#{name.lower()}"


def test_an_alert_says_nothing_of_what_callers_say() -> None:
    """An alert quotes only its value, and the label that names the instance."""
    quoted = re.findall(r"\{\{ *(\S+)", "".join(str(alert["annotations"]) for alert in ALERTS.values()))
    assert set(quoted) == {"$labels.instance", "$value"}


def test_what_the_runbook_names_exists() -> None:
    """The runbook names only settings, error codes, log fields and panels that exist."""
    settings = {variable.name for variable in variables()}
    assert set(re.findall(r"\b(?:PARLEY|OPENAI)_\w+", RUNBOOK)) <= settings
    source = "".join(path.read_text() for path in (DEPLOY.parent / "src").rglob("*.py"))
    assert [name for name in re.findall(r"`([a-z]+_[a-z_]+)`", RUNBOOK) if not re.search(rf"\b{name}\b", source)] == []
    titles = {panel["title"] for panel in DASHBOARD["panels"]} | {"Targets"}  # Prometheus's own page
    assert set(re.findall(r"(?<![*\w])\*([A-Z][^*:]+)\*(?!\*)", RUNBOOK)) <= titles


async def test_the_runbooks_commands_find_what_they_are_for(scene: Scene) -> None:
    """The commands run on the log of the scene; those in `in_vain` find nothing there, and only have to succeed."""
    need("jq")
    found = {}
    for section in re.split(r"^#+ ", RUNBOOK, flags=re.MULTILINE)[1:]:
        for command in re.findall(r"^```sh\n(.+?)^```", section, re.MULTILINE | re.DOTALL):
            found[section.split()[0]] = await run("bash", "-euo", "pipefail", "-c", command, folder=scene.log.parent)
    assert len(found) == 14
    in_vain = {
        "Runbook",
        "ParleyFirstTokenSlow",
        "ParleyEmbeddedModelDying",
        "ParleyWorkersDying",
        "ParleyInternalErrors",
    }
    assert {name for name, output in found.items() if not output} == in_vain
