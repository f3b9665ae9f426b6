"""Upgrade: print the advisories that apply to the next version, and find in the add-on what they mention.

``ADVISORIES`` is a JSON list of rows of ops.upgrade_advisories. What stands in backticks in a title or a description
is what the add-on must no longer use.
"""

from __future__ import annotations

import json
import logging
import os
import re
from typing import Any

from .context import Context, required, source_files

CODE = re.compile(r"`([^`]+)`")
SUFFIXES = (".py", ".xml")


def run(context: Context, log: logging.Logger) -> None:
    """An advisory that hits is a warning, not a failure: the report is for people."""
    target = required("TARGET_VERSION")
    advisories: list[dict[str, Any]] = json.loads(os.environ.get("ADVISORIES", "[]"))
    log.info("Odoo %s to %s: %s advisories apply", context.odoo_version, target, len(advisories))
    sources = {
        name: path.read_text(encoding="utf-8").splitlines()
        for name, path in source_files(context.addon).items()
        if path.suffix in SUFFIXES
    }
    report = [f"# {context.addon.name}: Odoo {context.odoo_version} to {target}", ""]
    total = 0
    for advisory in advisories:
        hits = find(advisory, sources)
        total += len(hits)
        use = f"{len(hits)} found" if hits else "not used here"
        log.info("[%s] %s: %s", advisory["severity"], advisory["title"], use)
        report += [f"## {advisory['title']}", "", f"Severity: {advisory['severity']}. {advisory['description']}", ""]
        for place, text in hits:
            log.warning("%s: %s", place, text)
            report.append(f"- `{place}`: `{text}`")
        report += ["", f"What to do: {advisory['migration_guide']}", ""] if hits else ["Not used here.", ""]
    verdict = f"to change before Odoo {target}: {total}"
    log.log(logging.WARNING if total else logging.INFO, verdict)
    context.write("upgrade-report.md", "\n".join([*report[:2], f"{verdict}.", "", *report[2:]]))


def find(advisory: dict[str, Any], sources: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Places as file:line, and the line there, that use what the advisory mentions."""
    terms = CODE.findall(f"{advisory['title']} {advisory['description']}")
    if not terms:
        return []
    used = re.compile("|".join(rf"(?<!\w){re.escape(term)}(?!\w)" for term in terms))
    return [
        (f"{name}:{number}", line.strip())
        for name, lines in sources.items()
        for number, line in enumerate(lines, 1)
        if used.search(line)
    ]
