"""A file that describes tools: TOML with a table ``[[tools]]`` for each version of a tool. Pure."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from worker.errors import SpecError
from worker.model.config import Config, check_extent, read
from worker.model.fields import STRICT, Word
from worker.model.images import ImageName


def _image(name: str) -> str:
    ImageName.parse(name)
    return name


class Tool(BaseModel):
    """One row of ``ops.tools``."""

    model_config = STRICT

    tool_name: Annotated[Word, Field(max_length=200)]
    version: Annotated[Word, Field(max_length=100)]
    docker_image: Annotated[Word, AfterValidator(_image)]
    config: dict[str, Any] = {}


def tools_of(text: str) -> list[dict[str, Any]]:
    """The tools of a file, as the control plane takes them.

    Raises ``SpecError`` that names the first key that is wrong, and what was expected. It reads configurations,
    too, which the control plane does not.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError("invalid_config", "", f"expected TOML: {error}") from None
    for key in document:
        if key != "tools":
            raise SpecError("invalid_config", key, f"{key[:100]!r}: unknown key; expected only [[tools]]")
    tables = document.get("tools")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise SpecError("invalid_config", "tools", "tools: expected a table [[tools]] for each version of a tool")
    return [_tool(f"tools[{n}]", table) for n, table in enumerate(tables)]


def _tool(where: str, table: dict[str, Any]) -> dict[str, Any]:
    tool = read(Tool, where, table)
    check_extent(f"{where}.config", tool.config)
    read(Config, f"{where}.config", tool.config)
    return tool.model_dump()
