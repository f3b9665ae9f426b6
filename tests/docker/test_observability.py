"""The metrics of a real worker, and the dashboard and the alert rules that read them, checked by promtool."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import urllib.request
from functools import cache
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.debian import PackageMissing, unpacked
from tests.support.docker import ROOT, Plane, until
from tests.support.postgres import free_port

FOLDER = ROOT / "deploy" / "observability"
ALERTS = FOLDER / "alerts.yaml"


@cache
def _root() -> Path:
    """Where promtool is unpacked: from Debian 13 on it has a package of its own."""
    try:
        return unpacked("promtool")
    except PackageMissing:
        return unpacked("prometheus")


def promtool(*words: str, stdin: str = "") -> str:
    """What it prints; it finds nothing wrong."""
    program = _root() / "usr" / "bin" / "promtool"
    done = subprocess.run([program, *words], cwd=FOLDER, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[str]:
    """Those of the dashboard, its variables filled in, and of the alert rules."""
    board = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found = [re.sub(r"\$__(range|rate_interval)", "5m", it).replace("$instance", ".*") for it in found]
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return [*found, *(rule["expr"] for rule in group["rules"])]


def test_alert_rules_fire_where_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts-test.yaml")


def test_every_expression_is_one_that_prometheus_reads(tmp_path: Path) -> None:
    rules = [{"record": f"expression_{n}", "expr": it} for n, it in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yaml"))


async def test_a_scrape_of_a_real_worker_has_every_metric_that_is_read(plane: Plane) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/metrics"

    def scrape() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    run_id = await plane.shell("echo one; echo fünf; echo kept > /artifacts/a.txt")
    async with plane.worker("--metrics-address", f"127.0.0.1:{port}"):
        await plane.until(run_id, "succeeded")

        async def ended() -> str | None:
            text = await asyncio.to_thread(scrape)
            return text if "ops_worker_runs_total{" in text else None

        text = await until(ended)
    assert promtool("check", "metrics", stdin=text) == ""
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    values = {(it.name, *(it.labels[name] for name in sorted(it.labels))): it.value for it in samples}
    for name, value in (
        (("ops_worker_runs_total", "succeeded", "build"), 1), (("ops_worker_log_lines_total",), 2),
        (("ops_worker_log_bytes_total",), 8), (("ops_worker_artifact_bytes_total",), 5),
        (("ops_worker_queue_wait_seconds_count", "build"), 1), (("ops_worker_run_duration_seconds_count", "build"), 1),
        (("ops_worker_engine_call_duration_seconds_count", "create"), 1), (("ops_worker_log_lag_seconds_count",), 1),
    ):  # fmt: skip
        assert (name, values[name]) == (name, value)
    assert values[("ops_worker_claim_duration_seconds_count",)] >= 1
    assert 0 < values[("ops_worker_disk_free_bytes",)] < values[("ops_worker_disk_size_bytes",)]
    known = {name for name, *_ in values} | set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    read = {name for it in expressions() for name in re.findall(r"ops_worker_\w+", it)}
    assert len(read) > 15
    assert read - known == set()
