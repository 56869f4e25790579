"""The manifests are valid for Kubernetes, and what they and the systemd unit say about Parley is true."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from parley.environment import settings_from, variables
from parley.providers.upstream import MAX_STREAMS
from tests.support.contract import read as read_contract
from tests.support.process import environment

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "kubernetes"
MANIFESTS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
DRAIN_S = 10
"""The time that Parley may take after its drain timeout, in seconds."""


def read(name: str) -> Any:
    """Return a manifest."""
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture
def deployment() -> Any:
    """Return the deployment's `spec`."""
    return read("deployment.yaml")["spec"]


@pytest.fixture
def pod(deployment: Any) -> Any:
    """Return the `spec` of the deployment's pods."""
    return deployment["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    """Return the pods' only container."""
    (container,) = pod["containers"]
    return container


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_what_kubernetes_takes(path: Path) -> None:
    """The check is strict: it rejects unknown fields."""
    kubernetes_validate.validate(read(path.name), "1.31", strict=True)


def test_all_manifests_are_applied_together() -> None:
    """`kubectl apply -k` accepts no other fields, and gives all of them the label that selects the pods."""
    kustomization = read("kustomization.yaml")
    assert sorted(kustomization.pop("resources")) == [path.name for path in MANIFESTS]
    labels = read("deployment.yaml")["spec"]["selector"]["matchLabels"]
    assert kustomization.pop("labels") == [{"pairs": labels, "includeSelectors": True}]
    (image,) = kustomization.pop("images")
    assert set(image) == {"name", "newTag"}
    assert set(kustomization) == {"apiVersion", "kind"}


def test_the_manifests_name_each_other_rightly(deployment: Any, container: Any) -> None:
    """A service that selects no pod, or a budget that allows no disruption, would be noticed at 3 am."""
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    service = read("service.yaml")["spec"]
    assert service["selector"] == labels
    (port,) = service["ports"]
    assert port["targetPort"] in [named["name"] for named in container["ports"]]
    budget = read("poddisruptionbudget.yaml")["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["maxUnavailable"] >= 1
    scaled = read("horizontalpodautoscaler.yaml")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", read("deployment.yaml")["metadata"]["name"])
    (image,) = read("kustomization.yaml")["images"]
    assert container["image"] == f"{image['name']}:{image['newTag']}"


def test_a_pod_may_do_nothing_that_parley_does_not_need(pod: Any, container: Any) -> None:
    """The limits are those of podman; only /tmp is writable."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]  # noqa: S108


@pytest.mark.process
def test_the_probes_ask_what_parley_answers(container: Any) -> None:
    """Liveness runs a command that `parley` has; readiness uses a path of the contract."""
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert "/health/ready" in read_contract()["paths"]
    for probe in ("startupProbe", "livenessProbe"):
        command = container[probe]["exec"]["command"]
        asked = subprocess.run(  # noqa: S603
            [sys.executable, "-m", *command], env=environment(PARLEY_PORT="9"), capture_output=True, check=False
        )
        assert (asked.returncode, asked.stdout) == (1, b""), "nothing answers there; 2 would be a wrong command"


def test_without_its_secret_no_pod_starts(container: Any) -> None:
    """A pod without keys would answer everyone; the documentation shows how to make the secret."""
    (source,) = container["envFrom"]
    assert not source["secretRef"].get("optional")
    made = f"kubectl create secret generic {source['secretRef']['name']} "
    assert made in (DEPLOY.parent / "docs" / "deployment.md").read_text()


def test_a_pod_is_given_the_time_to_drain(pod: Any, container: Any) -> None:
    """Its grace period exceeds the wait before the stop, the drain timeout, and Parley's extra time, taken together."""
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > waits + settings_from(given).drain_timeout_s + DRAIN_S
    assert set(given) <= {variable.name for variable in variables()}


def test_the_autoscaler_acts_before_the_places_are_taken() -> None:
    """Its target is below the number of streams that one Parley admits."""
    (metric,) = read("horizontalpodautoscaler.yaml")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "parley_streams_in_flight"
    assert int(metric["pods"]["target"]["averageValue"]) < MAX_STREAMS


def test_the_unit_for_systemd_runs_it_as_podman_does() -> None:
    """The unit grants nothing that Parley does not need, and gives it time to drain."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # the names in systemd's files have capitals
    unit.read(DEPLOY / "parley.container")
    container, service = unit["Container"], unit["Service"]
    hardened = {name: container[name] for name in ("ReadOnly", "DropCapability", "NoNewPrivileges", "PodmanArgs")}
    assert hardened == {
        "ReadOnly": "true",
        "DropCapability": "all",
        "NoNewPrivileges": "true",
        "PodmanArgs": "--memory=512m",
    }
    name, _, path = container["Environment"].partition("=")
    assert name in {variable.name for variable in variables()}
    secret, _, rest = container["Secret"].partition(",")
    assert rest.startswith(f"target={path},")
    assert f"secret rm {secret}" not in (DEPLOY.parent / "justfile").read_text(), (
        "what `just podman` forgets is its own"
    )
    grace = int(container["StopTimeout"])
    assert grace > settings_from({}).drain_timeout_s + DRAIN_S
    assert int(service["TimeoutStopSec"]) > grace
    assert "default.target" in unit["Install"]["WantedBy"]  # a user's systemd has no other target
