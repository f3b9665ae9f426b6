"""Every error that the worker raises on purpose. What a caller must distinguish is a class or an attribute."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any


class OpsError(Exception):
    """The root of the worker's own errors; its text is meant for a person.

    ``status`` is the exit code of a command that ends with it.
    """

    status = 1


class UsageError(OpsError):
    """The command line, the environment or the env file is wrong; ``problems`` has a line for each mistake."""

    status = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ConfigurationError(OpsError):
    """A setting cannot work. ``field`` is its name in the settings, or the name of a variable of another program."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Failed(OpsError):
    """A command failed, with an exit code of its own (``worker.cli.commands.EXIT_CODES``)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RunFailure(OpsError):
    """A run ends as failed. ``reason`` is a value of ``model.outcome.Reason``; ``details`` go into the event."""

    def __init__(self, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.details = details or {}


class SpecError(RunFailure):
    """A run cannot be carried out as it is configured. ``field`` names what is wrong."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(reason, message, {"field": field})
        self.field = field


class ImageMissing(RunFailure):
    """The engine does not have the image, and could not pull it."""

    def __init__(self, image: str, why: str) -> None:
        message = f"image {image} is not on this host and could not be pulled: {why}"
        super().__init__("image_missing", message, {"image": image})


class UnreadableRun(RunFailure):
    """The control plane describes a run in a way that the worker cannot read."""


class DatabaseUnavailable(OpsError):
    """The control plane cannot be reached."""


class CommandError(OpsError):
    """The database refused what a command asked of it."""


class DiskShort(OpsError):
    """The disk has no room for another run."""


class Refused(OpsError):
    """A function of the control plane answered ``success: false``; ``code`` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LeaseLost(OpsError):
    """Another instance owns the run, or it has ended: this one may not write for it any more."""

    def __init__(self, run_id: uuid.UUID) -> None:
        super().__init__(f"the lease of run {run_id} is lost")
        self.run_id = run_id


class EngineUnavailable(OpsError):
    """The container engine cannot be reached, or the connection to it broke."""


SERVER_ERROR = 500
"""The HTTP status from which on the engine failed, and not the request."""


class EngineError(OpsError):
    """The container engine answered with an error; ``status`` is its HTTP status, 0 for none."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ArtifactError(OpsError):
    """An artifact could not be read from the container or stored."""


def expected(problem: Mapping[str, Any]) -> str:
    """What an entry of pydantic's ``ValidationError.errors()`` asks for, in plain words. Quotes no value."""
    kind = problem["type"]
    if (words := _EXPECTED.get(kind)) is not None:
        return "expected " + words.format(**problem.get("ctx", {}))
    said = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    return said[:1].lower() + said[1:]


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "an object"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "string_type": "text",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "literal_error": "one of {expected}",
}
