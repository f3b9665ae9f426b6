"""The networks of runs: the one that they share, on which none reaches another, and those of runs with services.

Blocking: for a thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import docker
import docker.errors

from worker.errors import EngineError
from worker.model.container import LABEL_DATABASE, LABEL_PROJECT, LABEL_RUN, LABEL_SERVICE, ProjectNetwork, RunNetwork

NETWORK = "ops-worker"
BRIDGE = "ops-worker0"
"""A network on which containers reach the outside but not each other, and its interface on the engine's host."""

BRIDGE_PREFIX = "ops-"
"""How the interface of every network of this program begins."""

_BRIDGE_CHARACTERS = 15
"""What the kernel allows in the name of an interface."""

_BRIDGE_OPTION = "com.docker.network.bridge.name"
_ISOLATED = {"com.docker.network.bridge.enable_icc": "false"}
_WITHOUT_HOST = {"com.docker.network.bridge.inhibit_ipv4": "true"}
"""The host has no address on an internal network: a container there reaches no service of the host."""

NO_NAME_SERVER = "198.51.100.1"
"""An address for documentation (RFC 5737). The engine would ask the host's own name servers for names from outside."""

NETWORK_ATTEMPTS = 30
"""How often, a tenth of a second apart, the network is looked for that another worker may be making."""

OPEN_NETWORK = (
    f"containers on the network {NETWORK} reach each other, since the worker did not make it: "
    f"remove it (docker network rm {NETWORK}), and the worker makes its own"
)


def ensure_network(client: docker.APIClient) -> None:
    """Makes the network that runs share if it is not there. Raises what the SDK raises.

    One of that name on which containers reach each other is an ``EngineError``: the worker did not make it.
    """
    there = _ensure(client, NETWORK, {"options": {**_ISOLATED, _BRIDGE_OPTION: BRIDGE}})
    if any(not _ISOLATED.items() <= (network["Options"] or {}).items() for network in there):
        raise EngineError(0, OPEN_NETWORK)


def ensure_run_network(client: docker.APIClient, network: RunNetwork, labels: Mapping[str, str]) -> None:
    """Makes the network of one run if it is not there. Raises what the SDK raises.

    An earlier attempt at the run may have made it before a change of the configuration: then it is made again. No
    container on it has been started yet.
    """
    options = {_BRIDGE_OPTION: _bridge(network.name)} | (_WITHOUT_HOST if network.internal else {})
    wanted = {"options": options, "labels": dict(labels), "internal": network.internal}
    for there in _ensure(client, network.name, wanted):
        if there["Internal"] != network.internal:
            client.remove_network(there["Id"])
            _ensure(client, network.name, wanted)


def ensure_project_network(client: docker.APIClient, network: ProjectNetwork) -> None:
    """Makes the network of a project if it is not there. Raises what the SDK raises."""
    _ensure(client, network.name, {"options": {_BRIDGE_OPTION: _bridge(network.name)}, "labels": network.labels})


def unused_project_networks(client: docker.APIClient, database_id: uuid.UUID | None = None) -> list[ProjectNetwork]:
    """The networks of projects on which no container of a run is: of that database, or of all."""
    unused = []
    database = LABEL_DATABASE if database_id is None else f"{LABEL_DATABASE}={database_id}"
    for found in client.networks(filters={"label": [database, LABEL_PROJECT]}):
        labels = found["Labels"]
        network = ProjectNetwork(uuid.UUID(labels[LABEL_DATABASE]), uuid.UUID(labels[LABEL_PROJECT]))
        owner = [f"{name}={value}" for name, value in network.labels.items()]
        if LABEL_RUN not in labels and not client.containers(all=True, filters={"label": owner}):
            unused.append(network)
    return unused


def remove_project_network(client: docker.APIClient, network: ProjectNetwork) -> bool:
    """Removes it; returns False if the engine keeps it, since it is in use or gone."""
    try:
        client.remove_network(network.name)
    except docker.errors.APIError:
        return False
    return True


def _bridge(name: str) -> str:
    """The interface of the network of that name."""
    return (BRIDGE_PREFIX + uuid.uuid5(uuid.NAMESPACE_OID, name).hex)[:_BRIDGE_CHARACTERS]


def _ensure(client: docker.APIClient, name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes a network if there is none of that name; returns what was there before.

    The engine makes any number of networks of one name when asked at once, ``check_duplicate`` or not, and starts no
    container in any of them then. Of one bridge it makes one.
    """
    for left in reversed(range(NETWORK_ATTEMPTS)):
        there: list[dict[str, Any]] = client.networks(names=[f"^{name}$"])
        if there:
            return there
        try:
            client.create_network(name, driver="bridge", **options)
        except docker.errors.APIError:  # another worker may be making it just now
            if not left:
                raise
            time.sleep(0.1)
        else:
            break
    return []


def run_networks(client: docker.APIClient, database_id: uuid.UUID, run_id: uuid.UUID | None = None) -> list[Any]:
    """The networks of runs of that database, or of one of them."""
    label = LABEL_RUN if run_id is None else f"{LABEL_RUN}={run_id}"
    found: list[Any] = client.networks(filters={"label": [f"{LABEL_DATABASE}={database_id}", label]})
    return found


def remove_beside(client: docker.APIClient, database_id: uuid.UUID, run_id: uuid.UUID) -> None:
    """Removes the services and the network of a run. Raises what the SDK raises while one of them is still in use."""
    labels = [f"{LABEL_DATABASE}={database_id}", f"{LABEL_RUN}={run_id}", LABEL_SERVICE]
    for service in client.containers(all=True, filters={"label": labels}):
        with suppress(docker.errors.NotFound):
            client.remove_container(service["Id"], v=True, force=True)
    for network in run_networks(client, database_id, run_id):
        with suppress(docker.errors.NotFound):
            client.remove_network(network["Id"])
