"""A file that describes a project with its workflows: TOML with a table ``[[workflows]]`` for each. Pure."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from worker.errors import SpecError
from worker.model.config import WorkflowConfig, check_extent, read


def project_of(text: str) -> dict[str, Any]:
    """The description in a file, as the control plane takes it.

    Raises ``SpecError`` that names the first key that is wrong. It reads the configurations of the workflows, as a
    worker would; the control plane reads everything else.
    """
    try:
        project = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError("invalid_config", "", f"expected TOML: {error}") from None
    workflows = project.get("workflows")
    for place, workflow in enumerate(workflows if isinstance(workflows, list) else ()):
        config = workflow.get("config") if isinstance(workflow, dict) else None
        if isinstance(config, dict):
            where = f"workflows[{place}].config"
            check_extent(where, config)
            read(WorkflowConfig, where, config)
    for key, value in project.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise SpecError(
                "invalid_config", key, f"{key[:100]!r}: expected texts, numbers, true or false, lists and tables only"
            ) from None
    return project
