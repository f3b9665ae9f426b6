"""How a person names a run, a workflow or a project. Pure."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from worker.errors import UsageError

TYPES = ("build", "test", "deploy", "backup", "upgrade")
MAX_NUMBER = 2**31 - 1

_SLUG = re.compile(r"[a-z0-9-]{1,100}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RUN = "expected a run id, PROJECT#NUMBER or PROJECT/WORKFLOW, such as acme#12 or acme/nightly"
_WORKFLOW = "expected a workflow id, PROJECT/WORKFLOW or PROJECT/TYPE/WORKFLOW, such as acme/nightly"
_PROJECT = "expected the slug of a project: lower case letters, digits and -"


@dataclass(frozen=True, slots=True)
class WorkflowName:
    """``acme/nightly``, or with the type: ``acme/test/nightly``. ``name`` may also be a type with one workflow."""

    project: str
    workflow_type: str | None
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.project, self.workflow_type, self.name) if part)


@dataclass(frozen=True, slots=True)
class RunNumber:
    """``acme#12``."""

    project: str
    number: int

    def __str__(self) -> str:
        return f"{self.project}#{self.number}"


RunName = uuid.UUID | RunNumber | WorkflowName


def run_name(text: str) -> RunName:
    """Reads the name of a run. Raises ``UsageError``; the error does not quote the text."""
    if _UUID.fullmatch(text):
        return uuid.UUID(text)
    slug, mark, number = text.partition("#")
    if mark and _SLUG.fullmatch(slug) and re.fullmatch(r"[0-9]{1,10}", number) and 0 < int(number) <= MAX_NUMBER:
        return RunNumber(slug, int(number))
    found = _workflow(text)
    if found is None:
        raise UsageError(f"RUN: {_RUN}")
    return found


def workflow_name(text: str) -> uuid.UUID | WorkflowName:
    """Reads the name of a workflow. Raises ``UsageError``; the error does not quote the text."""
    if _UUID.fullmatch(text):
        return uuid.UUID(text)
    found = _workflow(text)
    if found is None:
        raise UsageError(f"WORKFLOW: {_WORKFLOW}")
    return found


def project_name(text: str, field: str = "PROJECT") -> str:
    """Reads the slug of a project. Raises ``UsageError``; the error does not quote the text."""
    if not _SLUG.fullmatch(text):
        raise UsageError(f"{field}: {_PROJECT}")
    return text


def user_name(text: str) -> uuid.UUID | str:
    """Reads the id of a user, or the address of one. Raises ``UsageError``; the error does not quote the text."""
    if _UUID.fullmatch(text):
        return uuid.UUID(text)
    if not re.fullmatch(r"[^@\s\0]+@[^@\s\0]+", text):
        raise UsageError("ID: expected the id of a user (a UUID), or the email of one")
    return text


def _workflow(text: str) -> WorkflowName | None:
    slug, _, rest = text.partition("/")
    if not (_SLUG.fullmatch(slug) and rest) or "\0" in rest:
        return None
    kind, slash, name = rest.partition("/")
    if slash and name and kind in TYPES:
        return WorkflowName(slug, kind, name)
    return WorkflowName(slug, None, rest)
