"""The caches of one run: filled before its container is made, and kept if the run succeeded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio

from worker.errors import EngineError
from worker.model.claim import Claim
from worker.model.container import Image
from worker.model.sizes import rounded_size
from worker.model.spec import RunSpec
from worker.model.volume import CacheVolume, Mount, cache_volume
from worker.run.engine_retry import EngineRetry
from worker.run.ports import RunContext
from worker.run.reporter import Reporter


class Caches:
    """The caches of one run. A cache that cannot be copied or kept does not end the run: it may vanish."""

    def __init__(
        self, claim: Claim, context: RunContext, container: str, reporter: Reporter, calls: EngineRetry
    ) -> None:
        self.names: tuple[str, ...] = ()
        """The caches that the run has, by their names in the project."""
        self._claim = claim
        self._context = context
        self._container = container
        self._reporter = reporter
        self._calls = calls

    async def filled(self, spec: RunSpec, image: Image) -> RunSpec:
        """The specification with a volume for each cache, which begins as the last successful run left it."""
        self.names = spec.terms.caches
        mounts = []
        for cache in spec.caches:
            volume = self._volume(cache.name)
            await self._fill(volume, image)
            mounts.append(Mount(volume.engine_name, cache.path, read_only=False))
        return replace(spec, volumes=(*spec.volumes, *mounts))

    async def keep(self) -> None:
        """Keeps what the run left in its caches. Called when it has succeeded, before that is final."""
        for name in self.names:
            with suppress(EngineError):
                await self._calls(self._context.engine.keep_cache, self._volume(name))

    async def trim(self) -> None:
        """Removes old volumes, and what is more than the host keeps."""
        if self.names:
            await self._calls(
                self._context.engine.trim_caches, self._context.database_id, self._context.policy.max_cache
            )

    def _volume(self, name: str) -> CacheVolume:
        claim = self._claim
        return cache_volume(self._context.database_id, claim.project_id, claim.run_id, name, self._container)

    async def _fill(self, volume: CacheVolume, image: Image) -> None:
        began = anyio.current_time()
        try:
            size = await self._calls(self._context.engine.fill_cache, volume, image)
        except EngineError as error:
            message = f"cache {volume.name!r} could not be copied, the run begins with an empty one: {error}"
            await self._reporter.event("warning", message, {"reason": "cache_failed", "cache": volume.name})
            size = await self._calls(partial(self._context.engine.fill_cache, volume, image, copies=False))
        if size:
            seconds = round(anyio.current_time() - began, 1)
            message = f"copied cache {volume.name!r}: {rounded_size(size)} in {seconds:g} s"
            facts = {"cache": volume.name, "bytes": size, "seconds": seconds}
            await self._reporter.event("info", message, facts)
