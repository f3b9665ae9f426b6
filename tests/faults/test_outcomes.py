"""Messages about outcomes with workers that die, receivers that do not answer, and hosts that may not send."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scene import Scene
from tests.support.docker import until
from tests.support.receivers import SILENCE, web

QUICK = "worker.outcomes.deliver.TIMINGS.poll=0.2,worker.outcomes.deliver.TIMINGS.last=1"


def notifying(folder: Path, url: str) -> tuple[str, ...]:
    """The flags of a host that tells one chat."""
    secrets = folder / "secrets" / "ops-notify"
    secrets.mkdir(parents=True)
    (secrets / "chat").write_text(url)
    file = folder / "notify.toml"
    file.write_text('[[destinations]]\nname = "chat"\nkind = "webhook"\nurl_secret = "chat"\nallow_private = true\n')
    return "--notify-file", str(file), "--secrets-dir", str(secrets.parent)


async def test_killed_between_sending_and_marking_it_sends_the_message_again_with_the_same_id(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.plane.db.execute(f"grant ops_notifier to {scene.role}")
    with web() as chat:
        flags = notifying(tmp_path, chat.url)
        job = await scene.job(exit_code=3)
        await scene.killed(*flags, points="sent=kill")
        assert len(chat.requests) == 1
        await scene.later(301)  # the lease of the message has ended
        await scene.work(*flags)
        first, second = chat.requests
        assert (first.delivery_id, first.body) == (second.delivery_id, second.body)
    assert await scene.plane.db.fetchval("select count(*) from ops_private.outbox") == 0
    await scene.until_gone()
    await scene.holds(job, "failed", "exit_code")


async def test_a_receiver_that_does_not_answer_holds_neither_run_nor_worker(scene: Scene, tmp_path: Path) -> None:
    await scene.plane.db.execute(f"grant ops_notifier to {scene.role}")
    with web() as chat:
        chat.answers = [SILENCE]
        flags = notifying(tmp_path, chat.url)
        first = await scene.job(exit_code=3)
        async with scene.worker(*flags, OPS_PATIENCE=QUICK) as worker:
            await scene.until_final(first)
            await worker.until_written("run finished")
            await until(lambda: chat.requests)
            second = await scene.job()
            await scene.until_final(second)
            await scene.until_gone()
            worker.signal(15)
            assert await worker.wait() == 0
    await scene.holds(first, "failed", "exit_code")
    await scene.holds(second)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "permission denied for notifications: an operator permits them with: grant ops_notifier to"),
        (("--notify-file", "/nowhere.toml"), "cannot read /nowhere.toml: No such file or directory"),
    ],
)
async def test_a_host_that_may_not_send_or_has_no_file_ends_with_2(
    scene: Scene, tmp_path: Path, flags: tuple[str, ...], problem: str
) -> None:
    async with scene.worker(*notifying(tmp_path, "https://chat.example"), *flags) as worker:
        assert await worker.wait() == 2
        assert f"ops-worker: --notify-file (OPS_WORKER_NOTIFY_FILE): {problem}" in worker.output.read_text()
