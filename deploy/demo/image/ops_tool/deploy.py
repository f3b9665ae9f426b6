"""Deploy: fetch the package that a build left, check it against its manifest, unpack it, check every file."""

from __future__ import annotations

import json
import logging
import os
import urllib.request
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import build
from .context import Context, ToolError, required, sha256, source_files

WORK = Path("/tmp/deploy")  # noqa: S108 - the container's own


def run(context: Context, log: logging.Logger) -> None:
    """Raises ``ToolError`` when what was built is not what would be deployed."""
    WORK.mkdir()
    base = required("PACKAGE_URL").rstrip("/")
    manifest = json.loads(fetch(f"{base}/manifest.json", required("MANIFEST_SHA256"), log).read_text())
    expected = manifest["package"]
    package = fetch(f"{base}/{expected['name']}", expected["sha256"], log)

    target = WORK / "addons"
    with zipfile.ZipFile(package) as archive:
        if strange := set(archive.namelist()) ^ set(manifest["files"]):
            raise ToolError(f"package and manifest do not list the same files: {', '.join(sorted(strange))}")
        archive.extractall(target)
    deployed = {name: sha256(path) for name, path in source_files(target).items()}
    for name, file in manifest["files"].items():
        if deployed.get(name) != file["sha256"]:
            raise ToolError(f"{name} is not the file that was built")
        log.info("%s: checksum is right", name)
    module = manifest["module"]
    build.read_manifest(target / module, context.odoo_version)
    log.info("%s files checked, %s %s is unpacked", len(deployed), module, manifest["version"])

    changes = compare(previous(log), deployed, log)
    context.write_json("deployment.json", {
        "module": module,
        "version": manifest["version"],
        "package_sha256": expected["sha256"],
        "deployed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_number": int(context.run_number),
        "changes": changes,
        "files": deployed,
    })  # fmt: skip


def fetch(url: str, checksum: str, log: logging.Logger) -> Path:
    """Downloads a file and checks it.

    Raises:
        ToolError: it cannot be had, or is another one.
    """
    path = WORK / url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            path.write_bytes(answer.read())
    except OSError as error:
        raise ToolError(f"{url}: {error}") from error
    if (found := sha256(path)) != checksum:
        raise ToolError(f"{url}: expected sha256 {checksum}, got {found}")
    log.info("fetched %s: checksum is right", url)
    return path


def previous(log: logging.Logger) -> dict[str, str]:
    """Files and checksums of the deployment before this one; none before the first."""
    url = os.environ.get("PREVIOUS_URL")
    if not url:
        log.info("nothing is deployed yet")
        return {}
    deployment: dict[str, Any] = json.loads(fetch(url, required("PREVIOUS_SHA256"), log).read_text())
    log.info("deployed now: %s, by run %s", deployment["version"], deployment["run_number"])
    return dict(deployment["files"])


def compare(before: dict[str, str], after: dict[str, str], log: logging.Logger) -> dict[str, list[str]]:
    """What this deployment adds, changes and removes."""
    changes = {
        "added": sorted(after.keys() - before.keys()),
        "changed": sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
        "removed": sorted(before.keys() - after.keys()),
    }
    for kind, names in changes.items():
        if before and names:
            log.info("%s: %s", kind, ", ".join(names))
    log.info("%s", ", ".join(f"{len(names)} {kind}" for kind, names in changes.items()))
    return changes
