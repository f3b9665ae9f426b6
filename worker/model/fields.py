"""The fields that several parts of a configuration share: texts, names, environments, paths, limits. Pure."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from worker.model.sizes import Size, shown_size

ARTIFACTS_DIR = "/artifacts"
SECRETS_DIR = "/run/secrets"
MAX_SECRETS = 20
MIN_MEMORY = 6 * 2**20
"""Bytes. The engine refuses to create a container with less."""

_RESERVED_DIRS = (ARTIFACTS_DIR, SECRETS_DIR, "/dev", "/proc", "/sys")
"""Folders of a container that the worker or the engine fills."""


STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
"""Of every object in a configuration: unknown keys and other types than the declared ones are errors."""


def env_name(name: str) -> str:
    """Returns the name of a variable. Raises ``ValueError``."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("expected a name of letters, digits and underscores")
    if name.startswith("OPS_"):
        raise ValueError("names that begin with OPS_ belong to the worker")
    return name


def no_nul(text: str) -> str:
    """Returns the text. Raises ``ValueError`` for one that no program and no file can get."""
    if "\0" in text:
        raise ValueError("a NUL character is not possible here")
    return text


def _secret_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,63}", name, re.ASCII):
        raise ValueError("expected the name of a secret: letters, digits, underscores, dots and dashes")
    return name


def _enough_memory(size: int) -> int:
    if size < MIN_MEMORY:
        raise ValueError(f"expected at least {shown_size(MIN_MEMORY)}")
    return size


def _mount_path(path: str) -> str:
    """Returns the path of a folder that is mounted, without a slash at its end."""
    parts = path.split("/")[1:]
    if parts and parts[-1] == "":
        del parts[-1]
    if not path.startswith("/") or not parts or any(part in ("", ".", "..") for part in parts):
        raise ValueError("expected the absolute path of a folder, such as /var/lib/data")
    plain = "/" + "/".join(parts)
    for taken in _RESERVED_DIRS:
        if f"{plain}/".startswith(f"{taken}/") or taken.startswith(f"{plain}/"):
            raise ValueError(f"expected a folder that is not in {taken} and does not contain it")
    return plain


Text = Annotated[str, AfterValidator(no_nul)]
Word = Annotated[str, Field(min_length=1), AfterValidator(no_nul)]
Env = dict[Annotated[str, AfterValidator(env_name)], Text]
Secrets = Annotated[list[Annotated[str, AfterValidator(_secret_name)]], Field(max_length=MAX_SECRETS)]
MountPath = Annotated[Text, Field(max_length=255), AfterValidator(_mount_path)]
"""An absolute path in a container at which a folder is mounted."""


class ContainerResources(BaseModel):
    """The limits of one container. The engine refuses fewer CPUs than the lower bound."""

    model_config = STRICT

    cpus: float | None = Field(None, ge=0.01, le=1024)
    memory: Annotated[Size, AfterValidator(_enough_memory)] | None = None
    pids: int | None = Field(None, ge=1, le=2**22)
    nofile: int | None = Field(None, ge=64, le=2**20)
