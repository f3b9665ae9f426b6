"""Splits the test classes of a project over shards, as values of Odoo's ``--test-tags``; pure but for reading files."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def test_classes(module: str, folder: Path) -> dict[str, list[str]]:
    """The classes of a module's ``tests`` that define tests, ``/module:Class``, with the names of these tests.

    Odoo knows classes by their names alone, so two of the same name are one.
    """
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "tests").glob("**/*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # Odoo reports it better
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                names = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
                if tests := [name for name in names if name.startswith("test")]:
                    there = found.setdefault(f"/{module}:{node.name}", [])
                    there += [name for name in tests if name not in there]
    return found


def split(modules: Iterable[str], classes: Mapping[str, float], shards: int) -> list[str]:
    """The ``--test-tags`` of each shard.

    ``classes`` is what ``weights`` returns. Each goes to the shard with the least weight, the heaviest one first. The
    first shard runs everything of the modules that no other shard runs, so a test that was not found by reading the
    files still runs once.
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


def weights(classes: Mapping[str, Sequence[str]], seconds: Mapping[str, float], shards: int) -> dict[str, float]:
    """The weight of each class in seconds. A class without an earlier run counts as its tests do on average.

    The tests of a class that takes longer than a shard's part stand alone, ``/module:Class.test``: otherwise the other
    shards would wait for that class.
    """
    known = sum(len(tests) for tag, tests in classes.items() if tag in seconds)
    average = sum(seconds[tag] for tag in classes if tag in seconds) / known if known else 1.0
    whole = {tag: seconds.get(tag, len(tests) * average) for tag, tests in classes.items()}
    part = sum(whole.values()) / shards
    found: dict[str, float] = {}
    for tag, weight in whole.items():
        if weight <= part:
            found[tag] = weight
        else:
            found |= {(one := f"{tag}.{test}"): seconds.get(one, weight / len(classes[tag])) for test in classes[tag]}
    return found
