"""The manifests are what Kubernetes takes, and what they say of Parley holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from parley.environment import settings_from, variables

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def read(name: str) -> Any:
    """Return a manifest."""
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_what_kubernetes_takes(path: Path) -> None:
    """Strictly: no field that it does not know."""
    kubernetes_validate.validate(read(path.name), "1.31", strict=True)


def test_all_manifests_are_applied_together() -> None:
    """By `kubectl apply -k`."""
    assert sorted(read("kustomization.yaml")["resources"]) == [path.name for path in MANIFESTS]


def test_a_pod_is_given_the_time_to_drain() -> None:
    """Its grace is above what it waits before, its drain deadline, and the 10 seconds that Parley takes beyond."""
    pod = read("deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    settings = settings_from(environment)
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > waits + settings.drain_timeout_s + 10
    assert set(environment) <= {variable.name for variable in variables()}


def test_the_autoscaler_acts_before_the_places_are_taken() -> None:
    """Its target is below what one Parley admits."""
    (metric,) = read("horizontalpodautoscaler.yaml")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "parley_streams_in_flight"
    assert int(metric["pods"]["target"]["averageValue"]) < 100
