"""Versions of Odoo, and how a database comes from one to another. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

from .steps import Failure

UPDATE, OPENUPGRADE = "click-odoo-update", "OpenUpgrade"
FRAMEWORK, SCRIPTS = "openupgrade_framework", "openupgrade_scripts"


def series(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: of 19.0, 19.0.1.3 and 19.0-20260102 it is the same. Raises ``ValueError``."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version.rpartition("~")[2])
    if found is None:
        raise ValueError(version)
    return tuple(int(number) for number in found.groups() if number is not None)


def way_of(source: str, target: str, modules: Collection[str]) -> str:
    """How to come from one series to the other: ``UPDATE`` within one, ``OPENUPGRADE`` to the next.

    Raises:
        Failure: it is more than one step, or the code lacks what it needs
    """
    since, until = series(source)[0], series(target)[0]
    if source == target:
        return UPDATE
    if until != since + 1:
        hops = ", ".join(f"{number}.0" for number in range(since + 1, until + 1))
        raise Failure(
            f"upgrade from {source} to {target}: it is not one step",
            f"a run makes one step, since an image has one Odoo: {hops}. Make a workflow for each, with the image of "
            "its version, and hand the database on with --keep-as. The vendor's service makes all at once, "
            "with a contract and a client of its own, which this tool does not start: restore the dump it returns, "
            "back that database up, and run this workflow with the code for it"
            if until > since
            else "an older Odoo cannot read a newer database: use the image of the newer version",
        )
    absent = [module for module in (FRAMEWORK, SCRIPTS) if module not in modules]
    if absent:
        raise Failure(
            f"upgrade from {source} to {target}: the code has no {' and no '.join(absent)}",
            f"add odoo-addon-{FRAMEWORK.replace('_', '-')} and odoo-addon-{SCRIPTS.replace('_', '-')} of {target} to "
            "requirements.txt, or OCA/OpenUpgrade as a submodule",
        )
    return OPENUPGRADE
