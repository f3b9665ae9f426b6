"""The services of a configuration: containers beside the container of a run. Pure."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from worker.model.fields import STRICT, ContainerResources, Env, MountPath, Secrets, Text, Word
from worker.model.sizes import Size
from worker.model.volume import MAX_VOLUMES, Volume

MAX_SERVICES = 10
"""Services of one configuration. The database refuses more, too."""

MAX_TMPFS = 10


def _service_name(name: str) -> str:
    """Returns the name. It is a host name on the network of the run, and a part of the container's name."""
    if not re.fullmatch(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?", name) or name == "localhost":
        raise ValueError("expected a host name of at most 40 lower-case letters, digits and dashes, such as db")
    return name


class _Strict(BaseModel):
    model_config = STRICT


class Tmpfs(_Strict):
    """``tmpfs``: a folder in memory, which counts as memory of the container."""

    path: MountPath
    size: Size | None = None


class Health(_Strict):
    """``health``: the command that exits with 0 once the service can be used, and how often it is executed."""

    command: Annotated[list[Text], Field(min_length=1)]
    interval_seconds: float = Field(2, ge=0.1, le=3600)
    retries: int = Field(30, ge=1, le=1000)


class Service(_Strict):
    """``services``: one container beside the run's."""

    name: Annotated[str, AfterValidator(_service_name)]
    image: Word | None = None
    tool: Word | None = None
    version: Word | None = None
    command: list[Text] | None = None
    env: Env = {}
    secrets: Secrets = []
    resources: ContainerResources = ContainerResources()
    user: Word | None = None
    read_only: bool = False
    tmpfs: Annotated[list[Tmpfs], Field(max_length=MAX_TMPFS)] = []
    volumes: Annotated[list[Volume], Field(max_length=MAX_VOLUMES)] = []
    health: Health | None = None


def _one_image(service: Service) -> Service:
    if (service.image is None) == (service.tool is None):
        raise ValueError("expected either image or tool")
    if service.version is not None and service.tool is None:
        raise ValueError("expected version only with tool")
    paths = [*(each.path for each in service.tmpfs), *(each.path for each in service.volumes)]
    if len(paths) != len(set(paths)):
        raise ValueError("expected a different path for each tmpfs and volume")
    return service


def _different_names(services: list[Service]) -> list[Service]:
    names = [service.name for service in services]
    if len(names) != len(set(names)):
        raise ValueError("expected a different name for each service")
    return services


Services = Annotated[
    list[Annotated[Service, AfterValidator(_one_image)]],
    Field(max_length=MAX_SERVICES),
    AfterValidator(_different_names),
]
