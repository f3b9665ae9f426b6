"""Splits the test classes of a project over shards, as values of Odoo's ``--test-tags``; pure but for reading files."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path


def test_classes(module: str, folder: Path) -> dict[str, int]:
    """The classes of a module's ``tests`` that define tests, with the number of tests: ``/module:Class``."""
    found: dict[str, int] = {}
    for path in sorted((folder / "tests").glob("**/*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # Odoo reports it better
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(each, ast.FunctionDef) and each.name.startswith("test") for each in node.body)
                if count:
                    found[f"/{module}:{node.name}"] = count
    return found


def split(modules: Iterable[str], classes: Mapping[str, float], shards: int) -> list[str]:
    """The ``--test-tags`` of each shard.

    ``classes`` has a weight for each class: its seconds in an earlier run, or its number of tests. Each goes to the
    shard with the least weight, the heaviest class first. The first shard runs everything of the modules that no
    other shard runs, so a test that was not found by reading the files still runs once.
    """
    everything = ",".join(f"/{module}" for module in modules)
    shards = max(1, min(shards, len(classes)))
    loads = [0.0] * shards
    parts: list[list[str]] = [[] for _ in range(shards)]
    for tag, weight in sorted(classes.items(), key=lambda item: (-item[1], item[0])):
        least = loads.index(min(loads))
        loads[least] += weight
        parts[least].append(tag)
    others = [f"-{tag}" for part in parts[1:] for tag in part]
    return [",".join([everything, *others]), *(",".join(part) for part in parts[1:])]


def weights(classes: Mapping[str, int], seconds: Mapping[str, float]) -> dict[str, float]:
    """The weight of each class in seconds. A class without an earlier run counts as its tests do on average."""
    known = sum(count for tag, count in classes.items() if tag in seconds)
    average = sum(seconds[tag] for tag in classes if tag in seconds) / known if known else 1.0
    return {tag: seconds.get(tag, count * average) for tag, count in classes.items()}
