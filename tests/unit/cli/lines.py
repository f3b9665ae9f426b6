"""Helpers that parse a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from worker.cli.parser import parse
from worker.cli.settings import Settings
from worker.errors import UsageError


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    return parse(argv, environ).settings


def problems(*argv: str, **environ: str) -> tuple[str, ...]:
    """The problems of that command line and environment, one per line."""
    with pytest.raises(UsageError) as caught:
        load(argv, environ)
    return caught.value.problems
