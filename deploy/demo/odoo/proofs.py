"""The table at the end: the runs of the demo in their order, each with a proof that was recorded with it.

proofs.py RUN... reads them with `ops-worker runs show RUN --json`
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

COLOURS = {"succeeded": "green", "failed": "red", "running": "cyan", "canceled": "yellow"}


def shown(run: str) -> dict[str, Any]:
    """What the control plane has of a run."""
    command = ["ops-worker", "runs", "show", run, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def artifact(run: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A JSON file that the run left; empty if there is none."""
    for each in run["artifacts"]:
        if each["artifact_key"].endswith(f"/{name}"):
            found: dict[str, Any] = json.loads(Path(urlsplit(each["artifact_url"]).path).read_text())
            return found
    return {}


def seconds(run: Mapping[str, Any], until: str) -> str:
    """How long it took from the start of its container until that time."""
    if not run["started_at"] or not run[until]:
        return ""
    return f"{(datetime.fromisoformat(run[until]) - datetime.fromisoformat(run['started_at'])).total_seconds():.0f} s"


def of_a_deploy(run: Mapping[str, Any]) -> str:
    report = artifact(run, "deploy.json")
    if report["result"] == "reverted":
        return f"its migration raised; reverted in {report['revert_seconds']} s; {report['comparison']}"
    changed = report["changed"]
    what = f"installed {len(changed)} modules" if not report["previous"] else f"updated {', '.join(changed)}"
    return f"release {report['release']}: {what}; without service for {report['seconds']['without service']} s"


def of_a_test(run: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{run['tests'][key]} {key}" for key in ("passed", "failed"))
    return f"{counts}: {', '.join(run['tests']['failing'])}" if run["tests"]["failing"] else counts


def of_a_build(run: Mapping[str, Any]) -> str:
    manifest = artifact(run, "manifest.json")
    checksum = manifest["files"]["addons.tar.gz"]
    return f"commit {manifest['commit'][:12]}; addons.tar.gz has the SHA-256 {checksum[:12]}…"


def of_a_backup(run: Mapping[str, Any]) -> str:
    report = artifact(run, "backup.json")
    return f"restored, {report['files_checked']} files compared, Odoo started: proven at {report['proven_at']}"


def of_a_staging(run: Mapping[str, Any]) -> str:
    report = artifact(run, "restore.json")
    return f"{report['files_checked']} files compared; {len(report['checked'])} rules of neutralisation checked"


def of_an_upgrade(run: Mapping[str, Any]) -> str:
    report = artifact(run, "upgrade.json")
    opened = f"{report['menus_opened']} menus opened, {len(report['problems'])} problems"
    return f"{opened}; the migration took {report['migration_seconds']} s"


def of_a_served_run(run: Mapping[str, Any]) -> str:
    return f"{run['url']} answered {seconds(run, 'ready_at')} after the start"


PROOFS = {
    "build": of_a_build, "test": of_a_test, "preview": of_a_served_run, "production": of_a_served_run,
    "deploy": of_a_deploy, "backup": of_a_backup, "staging": of_a_staging, "upgrade": of_an_upgrade,
}  # fmt: skip


def main() -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    table = Table("run", "workflow", "ended as", "took", "proof", box=None, pad_edge=False, header_style="bold")
    for name in sys.argv[1:]:
        run = shown(name)
        status = f"[{COLOURS.get(run['status'], '')}]{run['status']}[/]"
        table.add_row(name, run["workflow"], status, seconds(run, "finished_at"), PROOFS[run["workflow"]](run))
    console.print(table)


if __name__ == "__main__":
    main()
