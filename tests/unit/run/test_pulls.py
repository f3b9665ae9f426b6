"""Runs that wait for images: one pull for each image, its progress, its limits, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from tests.unit.claims import IMAGE
from tests.unit.fakes import AWAY, PATIENCE, ScriptedEngine, until
from worker.errors import ImageMissing
from worker.model.pull import PullProgress
from worker.run.pulls import Pulled, PullLimits, Pulls

LIMITS = PullLimits(total=60, idle=60, report=0.001)


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    return {"id": name, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}


class Waiting:
    """A run that waits for an image: what it reports, and how that ends."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.said: list[str] = []
        self.result: Pulled | Exception | None = None

    async def report(self, progress: PullProgress) -> None:
        self.said.append(progress.text)

    async def wait(self, pulls: Pulls, image: str) -> None:
        with self.scope:
            try:
                self.result = await pulls.pull(image, self.report)
            except ImageMissing as error:
                self.result = error


class Registry:
    """An engine whose pulls last until the test sets ``arrived``."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine([])
        self.engine.here, self.engine.pulls = False, self._pull
        self.arrived = anyio.Event()
        self.aborted = 0

    async def _pull(self) -> None:
        try:
            await self.arrived.wait()
        except BaseException:
            self.aborted += 1
            raise

    @asynccontextmanager
    async def awaited(self, *images: str, limits: PullLimits = LIMITS) -> AsyncIterator[list[Waiting]]:
        """One run for each image, all of which wait for it; the block waits for their ends."""
        waiting = [Waiting() for _ in images]
        with anyio.fail_after(PATIENCE):
            async with Pulls(self.engine, limits).opened() as pulls, anyio.create_task_group() as runs:
                for run, image in zip(waiting, images, strict=True):
                    runs.start_soon(run.wait, pulls, image)
                await wait_all_tasks_blocked()
                yield waiting

    @property
    def pulls(self) -> int:
        return self.engine.story.count("pull")


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def test_an_image_is_pulled_once_for_all_runs_and_another_beside_it(registry: Registry) -> None:
    async with registry.awaited(IMAGE, IMAGE, "other", IMAGE) as runs:
        assert registry.pulls == 2
        registry.arrived.set()
    assert [run.result.image.reference for run in runs if isinstance(run.result, Pulled)] == [
        IMAGE, IMAGE, "other", IMAGE,
    ]  # fmt: skip


async def test_every_run_reports_the_progress_and_repeats_nothing(registry: Registry) -> None:
    mib = 2**20
    registry.engine.reports = [
        {"id": "latest", "status": "Pulling from library/tool"}, layer("a", "Already exists"),
        layer("b", "Downloading", 8 * mib, 8 * mib), layer("b", "Download complete"),
        layer("c", "Downloading", mib, 4 * mib), {"status": "Digest: sha256:1"},
    ]  # fmt: skip
    async with registry.awaited(IMAGE, IMAGE) as runs:
        await until(lambda: all(run.said for run in runs))
        await anyio.sleep(5 * LIMITS.report)
        registry.arrived.set()
    assert [run.said for run in runs] == [["1 of 3 layers, 9m received"]] * 2


async def test_a_run_that_is_canceled_leaves_the_pull_to_the_others(registry: Registry) -> None:
    async with registry.awaited(IMAGE, IMAGE) as runs:
        runs[0].scope.cancel()
        await wait_all_tasks_blocked()
        assert registry.aborted == 0
        registry.arrived.set()
    assert runs[0].result is None
    assert isinstance(runs[1].result, Pulled)


async def test_the_last_run_that_is_canceled_ends_the_pull_and_the_next_begins_another(registry: Registry) -> None:
    async with Pulls(registry.engine, LIMITS).opened() as pulls, anyio.create_task_group() as tasks:
        first, second = Waiting(), Waiting()
        tasks.start_soon(first.wait, pulls, IMAGE)
        await wait_all_tasks_blocked()
        first.scope.cancel()
        tasks.start_soon(second.wait, pulls, IMAGE)
        await wait_all_tasks_blocked()
        assert (registry.pulls, registry.aborted) == (2, 1)
        registry.arrived.set()
    assert isinstance(second.result, Pulled)


@pytest.mark.parametrize(
    ("limits", "status", "why"),
    [
        (PullLimits(0.01, 60), "Downloading", "took longer than 0.01 s, the host's setting pull_timeout"),
        (PullLimits(60, 0.01), "Downloading", "made no progress for 0.01 s, the host's setting pull_idle_timeout"),
        (PullLimits(60, 0.01), "Waiting", "made no progress for 0.01 s, the host's setting pull_idle_timeout"),
    ],
)
async def test_a_limit_of_the_pull_ends_each_run_with_the_setting_s_name(
    registry: Registry, limits: PullLimits, status: str, why: str
) -> None:
    registry.engine.reports = [layer("a", status)]
    async with registry.awaited(IMAGE, IMAGE, limits=limits) as runs:
        pass
    ends = [f"could not be pulled: the registry {why} (0 of 1 layers, 0m received)"] * 2
    assert [str(run.result).partition("this host and ")[2] for run in runs] == ends
    assert registry.aborted == 1


async def test_an_error_of_the_registry_ends_each_run_with_its_reason(registry: Registry) -> None:
    registry.engine.faults = {"pull": [AWAY, ImageMissing(IMAGE, "no such tag")]}
    async with registry.awaited(IMAGE, IMAGE) as runs:
        pass
    assert registry.pulls == 2, "an engine that is away is asked again"
    assert [str(run.result).endswith("no such tag") for run in runs] == [True, True]


def test_only_a_change_counts_as_progress() -> None:
    progress = PullProgress(1.0)
    progress.record(layer("a", "Downloading", 1, 9), 2.0)
    progress.record(layer("a", "Downloading", 1, 9), 3.0)
    assert progress.changed_at == 2.0
    progress.record(layer("a", "Downloading", 2, 9), 4.0)
    assert (progress.changed_at, progress.waits) == (4.0, False)
    progress.record(layer("b", "Waiting"), 5.0)
    assert progress.waits
