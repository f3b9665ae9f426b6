"""``deploy/kubernetes.yaml`` against the schemas of Kubernetes, and against what the image and the worker know."""

from __future__ import annotations

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.docker import ROOT
from worker.cli.settings import FLAG_ONLY, Settings, variable

MANIFEST = ROOT / "deploy" / "kubernetes.yaml"


def resources() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_it_is_valid_in_every_field(version: str) -> None:
    assert [kubernetes_validate.validate(each, version, strict=True) for each in resources()] == [version] * 4


def test_an_unknown_field_is_found() -> None:
    daemons = resources()[1]
    daemons["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemons, "1.37", strict=True)


def test_its_settings_exist_and_the_drain_fits_into_the_grace_period() -> None:
    pod = resources()[1]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert given.keys() <= {variable(name) for name in Settings.model_fields if name not in FLAG_ONLY}
    [console] = resources()[2]["spec"]["template"]["spec"]["containers"]
    assert {each["name"] for each in console["env"]} <= {variable(name) for name in Settings.model_fields}
    assert float(given["OPS_WORKER_DRAIN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert pod["securityContext"]["runAsUser"] == int((ROOT / "Dockerfile").read_text().split("--uid ")[1].split()[0])
    assert container["readinessProbe"]["exec"]["command"][1] in (ROOT / "Dockerfile").read_text()
