"""Build: check the add-on, pack it reproducibly, and write a manifest with the checksum of every file."""

from __future__ import annotations

import ast
import csv
import logging
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any

from .context import Context, ToolError, sha256, source_files

REQUIRED = {"name": str, "version": str, "license": str, "depends": list, "data": list}
ACCESS_COLUMNS = [
    "id",
    "name",
    "model_id:id",
    "group_id:id",
    *(f"perm_{p}" for p in ("read", "write", "create", "unlink")),
]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can hold


def run(context: Context, log: logging.Logger) -> None:
    """Raises ``ToolError`` when the add-on is not fit to be packed."""
    addon = context.addon
    manifest = read_manifest(addon, context.odoo_version)
    log.info("manifest of %s %s is valid", addon.name, manifest["version"])
    files = source_files(addon)
    for name, path in files.items():
        check(name, path)
        log.info("%s is well-formed", name)
    log.info("%s files checked", len(files))

    package = context.artifacts / f"{addon.name}-{manifest['version']}.zip"
    pack(package, addon.name, files)
    log.info("packed %s, sha256 %.12s…", package.name, sha256(package))
    context.write_json("manifest.json", {
        "module": addon.name,
        "version": manifest["version"],
        "git_ref": context.git_ref,
        "git_commit": context.git_commit,
        "package": {"name": package.name, "size": package.stat().st_size, "sha256": sha256(package)},
        "files": {
            f"{addon.name}/{name}": {"size": path.stat().st_size, "sha256": sha256(path)}
            for name, path in files.items()
        },
    })  # fmt: skip


def read_manifest(addon: Path, odoo_version: str) -> dict[str, Any]:
    """The add-on's ``__manifest__.py``.

    Raises:
        ToolError: it is not what Odoo of that version expects.
    """
    try:
        manifest = ast.literal_eval((addon / "__manifest__.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ToolError(f"__manifest__.py cannot be read: {error}") from error
    for key, kind in REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise ToolError(f"__manifest__.py: {key!r} must be a {kind.__name__}")
    if not manifest["version"].startswith(f"{odoo_version}."):
        raise ToolError(f"__manifest__.py: version {manifest['version']} is not for Odoo {odoo_version}")
    if missing := [name for name in manifest["data"] if not (addon / name).is_file()]:
        raise ToolError(f"__manifest__.py: no such data file: {', '.join(missing)}")
    return dict(manifest)


def check(name: str, path: Path) -> None:
    """Raises ``ToolError`` when a file of the add-on is not well-formed."""
    try:
        if path.suffix == ".py":
            compile(path.read_bytes(), name, "exec", dont_inherit=True)
        elif path.suffix == ".xml":
            ET.parse(path)  # noqa: S314 - the add-on's own file
        elif path.name == "ir.model.access.csv":
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            if header != ACCESS_COLUMNS or any(len(row) != len(header) for row in rows):
                raise ToolError(f"{name}: expected the columns {', '.join(ACCESS_COLUMNS)}")
        else:
            path.read_text(encoding="utf-8")
    except (SyntaxError, ET.ParseError, UnicodeDecodeError, ValueError) as error:
        raise ToolError(f"{name}: {error}") from error


def pack(package: Path, root: str, files: dict[str, Path]) -> None:
    """The same files give the same bytes: sorted names, one time, one mode."""
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, path in files.items():
            entry = zipfile.ZipInfo(f"{root}/{name}", date_time=EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
