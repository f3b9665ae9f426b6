"""Adopts the runs that no worker works on."""

from __future__ import annotations

import uuid
from contextlib import suppress

import structlog

from worker.errors import EngineError, EngineUnavailable, LeaseLost, Refused, UnreadableRun
from worker.model.claim import Adoption, Claim, NotAdopted
from worker.model.outcome import Outcome
from worker.run.ports import RunContext
from worker.run.preparation import container_name

log = structlog.get_logger()


class Adopter:
    """Adopts runs that no worker works on, and removes the containers of those that have ended elsewhere."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    async def adopt(self, run_id: uuid.UUID) -> Claim | None:
        """Returns the run if this instance owns it now; removes the container of a run that has ended."""
        found = await self._answer(run_id)
        if found.is_over:
            await self._remove_container(run_id)
        return found.claim

    async def resolve_lost(self, claim: Claim) -> bool:
        """Whether a run whose lease was lost is this instance's again.

        If not, its container is removed, unless another worker on this engine may continue the run.
        """
        ours_again = await self.adopt(claim.run_id) is not None
        log.warning("lease lost, nothing more is written for this run", **claim.named, ours_again=ours_again)
        return ours_again

    async def _answer(self, run_id: uuid.UUID) -> Adoption:
        """What the control plane answers; a run that cannot be read is failed, so that it is final.

        An error of the database for one run does not affect other runs: the next sweep finds that run again.
        """
        try:
            return await self._context.queue.adopt(run_id)
        except Refused as error:
            log.warning("adoption refused", run_id=str(run_id), error=str(error), code=error.code)
            return Adoption()
        except UnreadableRun as error:
            log.warning("the run cannot be read, it fails", run_id=str(run_id), error=str(error))
            with suppress(LeaseLost):
                await self._context.queue.start(run_id)
                await self._context.queue.complete(run_id, Outcome.of(error))
            return Adoption(why_not=NotAdopted.FINAL)

    async def _remove_container(self, run_id: uuid.UUID) -> None:
        """Stops and removes the container of a run and what is beside it, if there is any."""
        engine, database_id = self._context.engine, self._context.database_id
        container = engine.container(container_name(run_id, database_id))
        try:
            await container.stop(self._context.stop_grace_seconds)
            await container.remove()
            await engine.remove_beside(database_id, run_id)
        except (EngineUnavailable, EngineError) as error:
            log.warning("cannot remove a leftover container yet", run_id=str(run_id), error=str(error))
