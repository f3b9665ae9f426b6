"""The volumes of projects on the engine. Blocking: for a thread."""

from __future__ import annotations

import json
import uuid
from base64 import b64decode
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

import docker
import docker.errors

from worker.engine.client import API_TIMEOUT, get
from worker.errors import EngineError
from worker.model.container import LABEL_DATABASE, LABEL_PROJECT, LABEL_VOLUME
from worker.model.volume import ProjectVolume
from worker.tar import BLOCK, END_MARK

LONE_FOLDER = BLOCK + len(END_MARK)
"""Bytes of an archive with one folder and nothing in it; each member more takes another block."""

_IS_FOLDER = 1 << 31
"""A bit of the engine's file modes."""

_AS_MADE = _IS_FOLDER | 0o755
"""The mode of a volume that the engine made, for a path that the image does not have."""


def labels_of(volume: ProjectVolume) -> dict[str, str]:
    """The labels of a volume, which tell whose it is."""
    return {
        LABEL_DATABASE: str(volume.database_id),
        LABEL_PROJECT: str(volume.project_id),
        LABEL_VOLUME: volume.name,
    }


def ensure_volume(client: docker.APIClient, volume: ProjectVolume) -> None:
    """Makes a volume if it is not there. Raises ``EngineError`` if one of that name has other labels."""
    labels = labels_of(volume)
    there = client.create_volume(volume.engine_name, labels=labels)
    if not labels.items() <= (there["Labels"] or {}).items():
        raise EngineError(0, f"the volume {volume.engine_name} was made by another program")


def project_volumes(client: docker.APIClient) -> list[ProjectVolume]:
    """The volumes of all projects of all databases."""
    found = client.volumes(filters={"label": [LABEL_DATABASE, LABEL_PROJECT, LABEL_VOLUME]})["Volumes"] or ()
    volumes = []
    for volume in found:
        labels = volume["Labels"]
        with suppress(ValueError):  # the labels of another program
            ids = uuid.UUID(labels[LABEL_DATABASE]), uuid.UUID(labels[LABEL_PROJECT])
            volumes.append(ProjectVolume(volume["Name"], *ids, labels[LABEL_VOLUME]))
    return volumes


def remove_volume(client: docker.APIClient, name: str) -> None:
    """Removes a volume with all that is in it. Raises what the SDK raises for one that a container uses."""
    with suppress(docker.errors.NotFound):
        client.remove_volume(name)


def is_unused(client: docker.APIClient, container: str, path: str) -> bool:
    """Whether a folder of a container is as the engine made it: root's, and empty."""
    facts = stat(client, container, path)
    if facts is None or facts["mode"] != _AS_MADE:
        return False
    with closing(get(client, container, "archive", {"path": path})) as response:
        size = 0
        for chunk in response.iter_content(LONE_FOLDER):
            size += len(chunk)
            if size > LONE_FOLDER:
                return False
    return True


def stat(client: docker.APIClient, container: str, path: str) -> Mapping[str, Any] | None:
    """What the engine says of a path in a container; None if it is not there."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/archive"
    response = client.head(url, params={"path": path}, timeout=API_TIMEOUT)
    if not response.ok:
        return None
    facts: Mapping[str, Any] = json.loads(b64decode(response.headers["X-Docker-Container-Path-Stat"]))
    return facts


def is_folder(facts: Mapping[str, Any]) -> bool:
    """Whether these facts are of a folder."""
    return bool(facts["mode"] & _IS_FOLDER)
