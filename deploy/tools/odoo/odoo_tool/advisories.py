"""Known problems between two versions (the table ``upgrade_advisories``) that concern the installed modules. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .steps import Failure
from .versions import series

SEVERITIES = ("critical", "high", "medium", "low")
ADVICE = "pass what ops.applicable_advisories returns, as a JSON array; README.md has the query"


def applicable(text: str, source: str, target: str, installed: Collection[str]) -> list[Mapping[str, Any]]:
    """The advisories of each step from one version to the other which name no module, or an installed one.

    The gravest come first; ``modules`` has the installed ones that an advisory names.

    Raises:
        Failure: the text is not what it should be
    """
    found = []
    for n, each in enumerate(read(text)):
        try:
            since, until = series(str(each["from_version"])), series(str(each["to_version"]))
            severity = SEVERITIES.index(each["severity"])
            modules = [str(module) for module in each.get("affects_modules") or []]
            title = str(each["title"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            thing = f"advisories[{n}]: expected from_version, to_version, severity and title, got {error!r}"
            raise Failure(thing, ADVICE) from error
        named = sorted(set(modules) & set(installed))
        if series(source) <= since <= until <= series(target) and (named or not modules):
            found.append((since, until, severity, title, {**each, "modules": named}))
    return [each for *_, each in sorted(found, key=lambda one: (one[2], one[0], one[1], one[3]))]


def read(text: str) -> Sequence[Any]:
    if not text.strip():
        return []
    try:
        listed = json.loads(text)
    except ValueError as error:
        raise Failure(f"advisories: expected JSON: {error}", ADVICE) from error
    if not isinstance(listed, list):
        raise Failure("advisories: expected a JSON array of objects", ADVICE)
    return listed
