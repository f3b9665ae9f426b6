"""What a run is told by its environment, and the log format that Odoo uses."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ToolError(Exception):
    """The run cannot succeed; the message says why."""


@dataclass(frozen=True)
class Context:
    """The run, as the worker describes it to the container, and the add-on that it is about."""

    run_number: str
    project: str
    workspace: str
    odoo_version: str
    git_ref: str
    git_commit: str
    artifacts: Path
    addon: Path

    @classmethod
    def from_environ(cls) -> Context:
        """Reads the variables that the worker sets."""
        return cls(
            run_number=os.environ.get("OPS_RUN_NUMBER", "0"),
            project=os.environ.get("OPS_PROJECT", "none"),
            workspace=os.environ.get("OPS_WORKSPACE_KEY", "none"),
            odoo_version=os.environ.get("OPS_ODOO_VERSION", "18.0"),
            git_ref=os.environ.get("OPS_GIT_REF", ""),
            git_commit=os.environ.get("OPS_GIT_COMMIT", ""),
            artifacts=Path(os.environ["OPS_ARTIFACTS_DIR"]),
            addon=Path(os.environ["ADDON"]),
        )

    def write(self, name: str, content: str) -> Path:
        """Leaves a text artifact."""
        path = self.artifacts / name
        path.write_text(content, encoding="utf-8")
        return path

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        """Leaves a JSON artifact."""
        return self.write(name, json.dumps(content, indent=2) + "\n")


def required(name: str) -> str:
    """An environment variable of the run.

    Raises:
        ToolError: it is not set.
    """
    value = os.environ.get(name)
    if not value:
        raise ToolError(f"{name} is not set: the run's metadata must give it under env")
    return value


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their name in it, sorted, without what Python leaves there."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: found[name] for name in sorted(found) if "__pycache__" not in name}


def configure_logging(database: str) -> None:
    """One line per record on stdout, as Odoo writes it: time, process, level, database, logger, message."""
    handler = logging.StreamHandler(sys.stdout)
    formatter = logging.Formatter(f"%(asctime)s %(process)d %(levelname)s {database} %(name)s: %(message)s")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
