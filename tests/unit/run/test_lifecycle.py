"""One run between a scripted engine, queue and store: what goes wrong on the way, and what is said in the end."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from structlog.testing import capture_logs

from tests.unit.claims import IMAGE, make_claim
from tests.unit.fakes import (
    AWAY,
    CONTAINER,
    END,
    FRAMES,
    JOURNAL,
    LINES,
    PATIENCE,
    QUIET,
    RUN_ID,
    SAID,
    ScriptedContainer,
    ScriptedQueue,
    Step,
    World,
)
from tests.unit.journal import frame, header
from worker.errors import ArtifactError, EngineError, EngineUnavailable, ImageMissing, LeaseLost, Refused
from worker.model.claim import Artifact
from worker.model.config import ArtifactRule
from worker.model.container import LABEL_TERMS
from worker.model.outcome import Stop
from worker.model.spec import HostPolicy, RunTerms, resolve
from worker.run.patience import ENGINE_REFUSALS


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("worker.run.journal.QUIET_SECONDS", 0.01)
    monkeypatch.setattr("worker.run.journal.backoff", lambda _: 0.0)
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 0.0)
    return World()


# --- the way it goes ------------------------------------------------------------------------------------------------


async def test_when_a_run_is_complete_its_log_and_artifacts_are_there_and_then_the_container_goes(world: World) -> None:
    assert await world.execute() == "succeeded"
    assert world.outcome == ("succeeded", 0)
    assert world.said == SAID
    assert [artifact.path for artifact in world.queue.artifacts] == ["a.txt"]
    assert world.store.prefix == f"acme/{RUN_ID}/"
    steps = (
        "claim→running", "create", "record_container", "start", "append_logs", "add_artifact", "complete", "remove",
    )  # fmt: skip
    assert world.did(*steps) == list(steps)
    assert [(kind, message) for kind, message, _ in world.queue.events] == [("info", "container created")]


async def test_an_exit_code_is_the_run_s(world: World) -> None:
    world.engine.exit_code = 3
    assert await world.execute() == "failed"
    assert world.outcome == ("exit_code", 3)


async def test_a_run_without_output_has_no_log(world: World) -> None:
    world.engine.frames = []
    assert await world.execute() == "succeeded"
    assert world.did("append_logs") == []


async def test_a_last_line_without_a_newline_is_a_line(world: World) -> None:
    world.engine.frames = [frame(1, b"one\n"), frame(1, b"two")]
    assert await world.execute() == "succeeded"
    assert world.said == [(1, "one"), (2, "two")]


async def test_an_image_that_is_not_here_is_pulled_and_that_is_said_before(world: World) -> None:
    world.engine.here = False
    assert await world.execute() == "succeeded"
    assert world.did("image", "add_event", "pull", "create")[:5] == ["image", "add_event", "pull", "image", "create"]
    assert world.queue.events[0][1] == "pulling image docker.io/library/tool:1"


@pytest.mark.parametrize(
    ("exit_code", "why", "error", "said"),
    [
        (0, None, None, ("info", "succeeded", "succeeded", 0, None)),
        (3, None, None, ("warning", "failed", "exit_code", 3, "exit code 3")),
        (0, Stop.CANCEL, None, ("warning", "canceled", "canceled", None, "canceled on request")),
        (0, None, EngineError(400, "bad"), ("error", "failed", "engine_error", None, "the container engine says: bad")),
    ],
)
async def test_the_worker_s_log_says_how_the_run_ended_and_as_loud_as_it_concerns_the_host(
    world: World, exit_code: int, why: Stop | None, error: Exception | None, said: tuple[object, ...]
) -> None:
    world.engine.exit_code = exit_code
    world.engine.faults = {"start": [error]} if error else {}
    run = world.run(run_number=17, started_at=(datetime.now(UTC) - timedelta(minutes=1)).isoformat())
    if why is not None:
        world.engine.become("exited")
        run.stop(why)
    with capture_logs() as logged:
        await world.execute(run)
    [line] = [line for line in logged if line["event"] == "run finished"]
    assert said == tuple(line[key] for key in ("log_level", "status", "reason", "exit_code", "error_message"))
    assert (line["run_id"], line["run_number"]) == (str(RUN_ID), 17)
    assert (line["project"], line["workflow"]) == ("acme", "nightly")
    assert 60 <= line["duration_seconds"] < 120


# --- the log stream -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [AWAY, END], ids=["broken", "clean but short"])
async def test_a_stream_cut_anywhere_is_read_again_and_no_line_is_lost_or_doubled(end: Step, world: World) -> None:
    for cut in range(len(JOURNAL)):
        world.__init__()  # type: ignore[misc]
        world.engine.readings = [[JOURNAL[:cut], end]] if cut else [[end]]
        assert await world.execute() == "succeeded"
        assert world.said == SAID, cut
        assert world.engine.follows == 2, cut


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_log_of_which_a_restarted_engine_may_have_lost_lines_says_so(world: World, *, restarted: bool) -> None:
    world.engine.restarted = restarted
    world.engine.readings = [[JOURNAL[:50], EngineUnavailable("gone")]]
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    warnings = [details["reason"] for kind, _, details in world.queue.events if kind == "warning"]
    assert warnings == (["log_damaged"] if restarted else [])


async def test_an_engine_that_was_never_away_is_not_asked_about_it(world: World) -> None:
    world.engine.restarted = True
    await world.execute()
    assert world.did("started_after") == []


async def test_a_stream_that_is_cut_again_and_again_is_read_until_it_is_whole(world: World) -> None:
    world.engine.readings = [[JOURNAL[:cut], AWAY] for cut in (100, 30, 150, 150)]
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    assert world.engine.follows == 5


async def test_the_log_of_an_ended_container_is_read_without_following_it(world: World) -> None:
    world.engine.follows_short = True
    assert await world.execute() == "succeeded"
    assert (world.said, world.engine.follows) == (SAID, 2)


@pytest.mark.parametrize("end", [END, QUIET], ids=["ends", "stays open"])
async def test_a_log_that_is_never_read_to_its_end_ends_the_run_with_what_there_is(end: Step, world: World) -> None:
    further = [[*FRAMES[: n // 4], end] for n in range(4, 12)]  # each place is reached four times
    world.engine.readings = [*further, *([FRAMES[0], FRAMES[1], end] for _ in range(50))]
    assert await world.execute() == "succeeded"
    assert world.said == SAID[:2]
    assert world.engine.follows == len(further) + 2
    [warning] = [(message, details) for kind, message, details in world.queue.events if kind == "warning"]
    assert warning == (
        "the log may be incomplete: 5 readings of it ended at the same place before its end",
        {"reason": "log_damaged"},
    )


async def test_a_stream_that_broke_after_its_last_byte_is_read_again(world: World) -> None:
    world.engine.readings = [[JOURNAL, AWAY]]
    assert await world.execute() == "succeeded"
    assert world.said == SAID


async def test_a_cut_stream_of_a_container_that_goes_on_is_read_again(world: World) -> None:
    world.engine.lasts = True
    world.engine.readings = [[FRAMES[0], END], [FRAMES[0], FRAMES[1], AWAY]]
    run = world.run()
    async with world.executing(run) as result:
        assert result == []
        assert world.engine.follows == 3
        world.engine.become("exited")
    assert result == ["succeeded"]
    assert world.said == SAID


async def test_the_end_of_a_whole_stream_is_not_the_end_of_a_container_that_goes_on(world: World) -> None:
    world.engine.lasts = True
    world.engine.readings = [[*FRAMES, END]]  # as when the engine restarts and its containers live on
    run = world.run()
    async with world.executing(run) as result:
        assert result == []
        assert world.engine.follows == 2
        world.engine.become("exited")
    assert result == ["succeeded"]
    assert world.said == SAID


async def test_a_log_that_the_engine_keeps_refusing_ends_the_run(world: World) -> None:
    world.engine.faults = {"follow": [EngineError(500, "no such log driver")] * 50}
    assert await world.execute() == "failed"
    assert world.outcome == ("engine_error", None)
    assert "no such log driver" in world.message


async def test_refusals_between_which_lines_came_are_not_counted(world: World) -> None:
    broken = EngineError(500, "restarting")
    world.engine.readings = [[FRAMES[0], broken] for _ in range(2 * ENGINE_REFUSALS)]
    assert await world.execute() == "succeeded"
    assert world.said == SAID


async def test_a_look_at_the_last_entry_that_fails_costs_no_second_reading(world: World) -> None:
    world.engine.faults = {"last_entry": [AWAY] * 4}
    assert await world.execute() == "succeeded"
    assert world.engine.follows == 1


async def test_a_quiet_stream_of_a_container_that_has_ended_is_read_again(world: World) -> None:
    world.engine.readings = [[JOURNAL[:100], QUIET]]
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    assert world.engine.follows == 2


async def test_a_quiet_stream_of_a_container_that_goes_on_is_waited_for(world: World) -> None:
    world.engine.lasts = True
    gate = anyio.Event()
    world.engine.readings = [[FRAMES[0], gate, *FRAMES[1:]]]
    run = world.run()
    async with world.executing(run):
        while len(world.did("inspect")) < 5:
            await anyio.sleep(0.01)
        gate.set()
        while len(world.queue.lines) < len(SAID):
            await anyio.sleep(0.01)
        assert world.engine.follows == 1
        world.engine.become("exited")
    assert world.said == SAID


async def test_a_damaged_log_is_not_read_for_ever_and_is_told(world: World) -> None:
    broken = header(3, 23) + b"error reading log file\n"
    world.engine.readings = [[FRAMES[0], broken, END] for _ in range(50)]
    assert await world.execute() == "succeeded"
    assert world.engine.follows < 50
    (warning,) = [event for event in world.queue.events if event[0] == "warning"]
    assert "error reading log file" in warning[1]
    assert warning[2] == {"reason": "log_damaged"}


@pytest.mark.parametrize("script", [[JOURNAL[:100], END], [JOURNAL[:100], AWAY], [JOURNAL[:100], QUIET]])
async def test_a_container_that_vanished_ends_the_run_with_what_was_read(world: World, script: list[Step]) -> None:
    world.engine.lasts = True
    gate = anyio.Event()
    world.engine.readings = [[gate, *script]]
    run = world.run()
    async with world.executing(run) as result:
        world.engine.become(None)
        gate.set()
    assert result == ["failed"]
    assert world.outcome == ("engine_lost", None)
    assert world.said == SAID[:2]
    assert world.queue.artifacts == []


# --- the engine is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["image", "create", "start", "inspect", "follow", "last_entry", "archive", "remove"])
async def test_a_call_that_the_engine_is_away_for_is_made_again(world: World, call: str) -> None:
    await world.execute()
    usual = len(world.did(call))
    world.__init__()  # type: ignore[misc]
    away = ENGINE_REFUSALS + 3
    world.engine.faults = {call: [AWAY] * away}
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    assert len(world.did(call)) >= usual + away
    assert len(world.queue.artifacts) == 1
    assert world.engine.status is None


async def test_a_pull_that_breaks_is_made_again(world: World) -> None:
    world.engine.here = False
    world.engine.faults = {"pull": [AWAY] * 4}
    assert await world.execute() == "succeeded"
    assert len(world.did("pull")) == 5


async def test_an_image_that_was_pulled_is_looked_for_again(world: World) -> None:
    world.engine.here = False

    async def go_away() -> None:
        world.engine.faults = {"image": [AWAY] * 4}

    world.engine.pulls = go_away
    assert await world.execute() == "succeeded"
    assert len(world.did("pull")) == 1
    assert len(world.did("image")) == 6


async def test_a_run_is_adopted_though_the_engine_is_away_at_first(world: World) -> None:
    world.engine.become("exited")
    world.engine.started_at = datetime.now(UTC)
    world.engine.faults = {"inspect": [AWAY] * 4}
    assert await world.execute(status="running") == "succeeded"
    assert world.did("image", "create") == []


async def test_a_run_over_its_time_is_stopped_though_the_engine_is_away_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.run.journal.QUIET_SECONDS", PATIENCE)  # nobody else looks at it
    world.engine.lasts = True
    run = world.run(config={"timeout_seconds": 0.2})
    async with world.executing(run):
        world.engine.faults = {"inspect": [AWAY] * 4}
    assert world.outcome == ("timeout", 143)


async def test_a_stop_that_the_engine_is_away_for_is_made_again(world: World) -> None:
    world.engine.lasts = True
    world.engine.faults = {"stop": [AWAY] * 4}
    run = world.run()
    async with world.executing(run) as result:
        run.stop(Stop.CANCEL)
    assert result == ["canceled"]
    assert len(world.did("stop")) == 5


@pytest.mark.parametrize("error", [AWAY, EngineError(500, "busy")])
async def test_a_container_that_cannot_be_removed_holds_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("worker.run.lifecycle.CLEANUP_SECONDS", 0.05)
    world.engine.faults = {"remove": [error] * 1_000_000}
    assert await world.execute() == "succeeded"


# --- stopping -------------------------------------------------------------------------------------------------------


async def test_a_cancel_ends_the_container_and_keeps_log_and_artifacts(world: World) -> None:
    world.engine.lasts = True
    run = world.run()
    async with world.executing(run) as result:
        run.stop(Stop.CANCEL)
    assert result == ["canceled"]
    assert world.outcome == ("canceled", 143)
    assert world.engine.grace_seconds == 3
    assert world.said == SAID
    assert len(world.queue.artifacts) == 1
    assert world.engine.status is None


async def test_a_run_that_prints_too_much_is_ended_without_grace(world: World) -> None:
    world.engine.lasts = True
    world.output_bytes = 1
    assert await world.execute() == "failed"
    assert world.outcome == ("output_limit", 143)
    assert world.engine.grace_seconds == 0
    assert world.said == SAID[:1], "what comes after it is not read"


async def test_a_run_that_must_give_way_is_ended_without_grace_and_without_its_artifacts(world: World) -> None:
    world.engine.lasts = True
    run = world.run()
    async with world.executing(run) as result:
        run.quota.evict(2**30, left=2**20)
    assert result == ["failed"]
    assert world.outcome == ("disk_full", 143)
    assert "1,024m" in world.message
    assert world.engine.grace_seconds == 0
    assert world.said == SAID
    assert world.queue.artifacts == []
    assert world.engine.status is None, "what it wrote goes with its container"


async def test_a_run_that_writes_more_than_it_may_is_ended(world: World) -> None:
    world.engine.lasts = True
    run = world.run()
    async with world.executing(run) as result:
        run.quota.record(20 * 2**30)
        await wait_all_tasks_blocked()
        assert result == []
        run.quota.record(20 * 2**30 + 1)
    assert world.outcome == ("disk_limit", 143)
    assert world.queue.artifacts == []


async def test_a_flood_ends_a_container_in_the_grace_that_a_cancel_gave_it(world: World) -> None:
    world.engine.lasts = world.engine.deaf = True
    run = world.run()
    async with world.executing(run) as result:
        run.stop(Stop.CANCEL)
        await wait_all_tasks_blocked()
        assert result == []
        run.quota.evict(2**30, left=2**20)
    assert world.outcome == ("canceled", 143)
    assert world.engine.grace_seconds == 0
    assert world.queue.artifacts == []


async def test_a_flood_that_shows_while_artifacts_are_collected_ends_the_collection(world: World) -> None:
    run = world.run()
    world.store.waits = anyio.Event()
    async with world.executing(run) as result:
        assert result == []
        run.quota.evict(2**30, left=2**20)
    assert world.outcome == ("disk_full", None)
    assert world.queue.outcome is not None
    assert "not collected" in world.queue.outcome.details["artifacts_error"]
    assert world.queue.artifacts == []


@pytest.mark.parametrize("cancel", ["before", "meanwhile", None])
async def test_artifacts_that_take_for_ever_are_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch, cancel: str | None
) -> None:
    monkeypatch.setattr("worker.run.collection.COLLECT_SECONDS", 0.05 if cancel is None else 3600)
    monkeypatch.setattr("worker.run.collection.CANCELED_COLLECT_SECONDS", 0.05)
    run = world.run(config={"timeout_seconds": 0.01 if cancel is None else 900})
    world.store.waits = anyio.Event()
    if cancel == "before":
        run.stop(Stop.CANCEL)
        world.engine.become("exited")
        world.engine.started_at = datetime.now(UTC)
    async with world.executing(run):
        if cancel == "meanwhile":
            run.stop(Stop.CANCEL)
    assert world.queue.outcome is not None
    given_up = world.queue.outcome.details["artifacts_error"]
    if cancel is None:
        assert world.outcome == ("artifacts_failed", None)
        assert given_up == "the collection was given up: it took longer than 0.05 s"
    else:
        assert world.outcome == ("canceled", None)
        assert given_up == "the collection was given up: the run was canceled, and it took 0.05 s more"


async def test_the_time_without_a_database_or_an_engine_is_none_of_the_collection_s(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(self: object, run_id: uuid.UUID, artifact: Artifact) -> None:
        await anyio.sleep(0.8)

    monkeypatch.setattr("worker.run.collection.COLLECT_SECONDS", 0.5)
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 0.6)
    monkeypatch.setattr(ScriptedQueue, "add_artifact", slow)
    world.engine.faults = {"archive": [AWAY]}
    run = world.run(config={"timeout_seconds": 0.1})
    assert await world.execute(run) == "succeeded"


async def test_the_end_of_a_run_that_prints_too_much_is_waited_for_without_reading_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.lasts = True
    world.output_bytes = 1
    monkeypatch.setattr("worker.run.journal.ENDED_POLL_SECONDS", 0.0)
    kill = ScriptedContainer.stop

    async def slow(container: ScriptedContainer, grace_seconds: float) -> None:
        looks = len(world.did("inspect"))
        while len(world.did("inspect")) < looks + 3:
            await checkpoint()
        await kill(container, grace_seconds)

    monkeypatch.setattr(ScriptedContainer, "stop", slow)
    assert await world.execute() == "failed"
    assert world.engine.follows == 1


async def test_a_log_beyond_its_bound_is_cut_and_an_event_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.logs.lines.TAIL_BYTES", 80)  # one line
    world.log_bytes = 80
    assert await world.execute() == "succeeded"
    assert [seq for seq, _ in world.said] == [1, 2, len(SAID)]
    assert "left out here" in world.said[1][1]
    [(kind, message, payload)] = [event for event in world.queue.events if event[2].get("reason") == "log_cut"]
    assert (kind, payload["omitted_lines"], payload["lines"]) == ("warning", len(SAID) - 2, len(SAID))
    assert message == f"the log is cut: {len(SAID) - 2} of {len(SAID)} lines are left out in its middle"


async def test_a_cancel_before_the_container_is_created_starts_nothing(world: World) -> None:
    run = world.run()
    run.stop(Stop.CANCEL)
    assert await world.execute(run) == "canceled"
    assert world.did("start", "archive", "append_logs") == []
    assert world.engine.status is None


async def test_a_pull_that_takes_too_long_ends_the_run_and_names_the_setting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.here = False
    world.engine.pulls = anyio.sleep_forever
    monkeypatch.setattr(world, "pull_seconds", 0.01)
    assert await world.execute() == "failed"
    assert world.queue.outcome is not None
    assert world.queue.outcome.reason == "image_missing"
    assert str(world.queue.outcome.message).endswith("longer than 0.01 s, the host's setting pull_timeout")


async def test_a_cancel_during_a_pull_does_not_wait_for_its_end(world: World) -> None:
    world.engine.here = False
    world.engine.pulls = anyio.sleep_forever
    run = world.run()
    async with world.executing(run) as result:
        assert world.story[-1] == "pull"
        run.stop(Stop.CANCEL)
    assert result == ["canceled"]
    assert world.did("create") == []


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [(Stop.CANCEL, Stop.TIMEOUT, "canceled"), (Stop.TIMEOUT, Stop.CANCEL, "timeout")],
)
async def test_the_first_reason_to_stop_is_the_one_that_is_told(
    world: World, first: Stop, second: Stop, reason: str
) -> None:
    world.engine.lasts = True
    run = world.run()
    async with world.executing(run):
        run.stop(first)
        run.stop(second)
    assert world.outcome[0] == reason
    assert len(world.did("stop")) == 1


async def test_a_run_over_its_time_is_stopped(world: World) -> None:
    world.engine.lasts = True
    assert await world.execute(config={"timeout_seconds": 0.05}) == "failed"
    assert world.outcome == ("timeout", 143)
    assert world.said == SAID


async def test_the_time_of_an_adopted_run_counts_from_its_start(world: World) -> None:
    world.engine.lasts = True
    world.engine.become("running")
    world.engine.started_at = datetime.now(UTC) - timedelta(hours=2)
    assert await world.execute(status="running") == "failed"
    assert world.outcome == ("timeout", 143)


@pytest.mark.parametrize(("seconds", "reason"), [(3599, "signal"), (3600, "timeout")])
async def test_a_run_over_its_time_is_a_timeout_also_for_who_finds_its_container_stopped(
    world: World, seconds: float, reason: str
) -> None:
    world.engine.become("exited")
    world.engine.exit_code = 143
    world.engine.started_at = datetime.now(UTC) - timedelta(hours=2)
    world.engine.finished_at = world.engine.started_at + timedelta(seconds=seconds)
    assert await world.execute(status="running", container_id=CONTAINER) == "failed"
    assert world.outcome == (reason, 143)
    assert world.did("stop") == []


async def test_a_run_that_ended_in_time_is_no_timeout_however_long_its_log_takes(world: World) -> None:
    async def slow() -> None:
        await anyio.sleep(0.2)

    world.queue.storing = slow
    assert await world.execute(config={"timeout_seconds": 0.05}) == "succeeded"
    assert world.did("stop") == []


# --- not ours any more, and detached --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["claim→running", "record_container", "append_logs", "add_artifact", "complete"])
async def test_a_lost_lease_ends_the_work_at_that_call_and_leaves_the_container(world: World, call: str) -> None:
    world.queue.faults = {call: [LeaseLost(RUN_ID)]}
    assert await world.execute() is None
    assert world.queue.outcome is None
    assert world.did("stop", "remove") == []
    said = ("claim→running", "record_container", "append_logs", "add_artifact", "complete")
    assert world.did(*said)[-1] == call


async def test_losing_a_run_ends_the_work_at_once_and_leaves_the_container(world: World) -> None:
    world.engine.lasts = True
    run = world.run()
    async with world.executing(run) as result:
        run.lose()
    assert result == [None]
    assert world.engine.status == "running"
    assert world.did("stop", "remove", "complete", "add_artifact") == []


async def test_a_run_that_is_lost_before_it_begins_does_nothing(world: World) -> None:
    run = world.run()
    run.lose()
    assert await world.execute(run) is None
    assert world.did("create", "start", "complete") == []


async def test_a_detached_run_leaves_its_container_and_says_nothing(world: World) -> None:
    world.engine.lasts = True
    run = world.run()
    with anyio.CancelScope() as scope:
        async with world.executing(run) as result:
            scope.cancel()
    assert result == []
    assert world.engine.status == "running"
    assert world.did("stop", "remove", "complete") == []


@pytest.mark.parametrize("position", range(len(LINES) + 1))
async def test_an_adopted_run_goes_on_where_its_log_ended(world: World, position: int) -> None:
    world.engine.become("exited")
    world.engine.started_at = datetime.now(UTC)
    adopted: dict[str, Any] = {"status": "running", "log_position": position, "container_id": CONTAINER}
    assert await world.execute(**adopted) == "succeeded"
    assert world.said == SAID[position:]
    assert world.did("claim→running") == []
    assert world.queue.events == []  # what was said of its container was said already


@pytest.mark.parametrize("call", ["image", "create", "start", "follow", "inspect", "last_entry", "archive", "remove"])
async def test_an_engine_that_failed_once_is_asked_again(world: World, call: str) -> None:
    world.engine.faults = {call: [EngineError(500, "out of luck")]}
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    assert world.engine.status is None


async def test_an_adopted_run_ends_as_it_began_whatever_its_configuration_says_by_then(world: World) -> None:
    world.engine.lasts = True
    config = {"timeout_seconds": 5, "artifacts": [{"path": "a.*"}], "resources": {"output": "10k"}}
    with anyio.CancelScope() as scope:
        async with world.executing(world.run(config=config)):
            scope.cancel()
    world.engine.become("exited")
    world.queue.lines.clear()  # whether any were stored yet is chance; the database would skip those
    adopted: dict[str, Any] = {"status": "running", "container_id": CONTAINER, "config": {"comand": 1}}
    assert await world.execute(**adopted) == "succeeded"
    assert world.said == SAID
    assert world.store.rules == (ArtifactRule(path="a.*"),)
    kept = RunTerms.model_validate_json(world.engine.labels[LABEL_TERMS])
    assert (kept.timeout_seconds, kept.output_bytes, kept.memory_bytes) == (5, 10_240, 2 * 2**30)


def test_what_a_newer_worker_keeps_beside_is_passed_over() -> None:
    kept = resolve(make_claim(), HostPolicy()).terms
    newer = kept.model_dump_json().replace("{", '{"colour":"red",', 1)
    assert RunTerms.model_validate_json(newer) == kept


async def test_a_container_that_is_gone_is_not_made_again(world: World) -> None:
    world.engine.faults = {"follow": [EngineError(404, "No such container")]}
    assert await world.execute(status="running", container_id=CONTAINER) == "failed"
    assert world.outcome == ("engine_lost", None)
    assert world.did("create") == []


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ("pull", ImageMissing(IMAGE, "no such tag"), "image_missing"),
        ("create", ImageMissing(IMAGE, "removed meanwhile"), "image_missing"),
        ("create", EngineError(400, "invalid mount"), "engine_error"),
        ("start", EngineError(400, "exec: not found"), "engine_error"),
        ("create", EngineError(500, "write: no space left on device"), "disk_full"),
        ("create", KeyError("Id"), "worker_error"),
        ("start", ValueError("a bug"), "worker_error"),
        ("follow", RuntimeError("a bug"), "worker_error"),
        ("last_entry", RuntimeError("a bug"), "worker_error"),
    ],
)
async def test_whatever_goes_wrong_ends_the_run_with_a_word_and_takes_its_container_away(
    world: World, call: str, error: Exception, reason: str
) -> None:
    world.engine.here = call != "pull"
    world.engine.faults = {call: [error] * (ENGINE_REFUSALS + 1)}
    assert await world.execute() == "failed"
    assert world.outcome == (reason, None)
    assert str(error) in world.message
    assert world.engine.status is None
    assert world.story[-1] == "remove"


async def test_an_invalid_configuration_never_reaches_the_engine(world: World) -> None:
    assert await world.execute(config={"comand": ["true"]}) == "failed"
    assert world.outcome == ("invalid_config", None)
    assert "comand" in world.message
    assert world.did("image", "create") == []


async def test_an_image_that_a_pull_did_not_bring_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.engine.here = False

    async def nothing(reference: str) -> None:
        world.story.append("pull")

    monkeypatch.setattr(world.engine, "pull", nothing)
    assert await world.execute() == "failed"
    assert world.outcome == ("image_missing", None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ArtifactError("access denied"), "artifacts_failed"),
        (EngineError(500, "cannot read the volume"), "artifacts_failed"),
        (ArtifactError("No space left on device"), "disk_full"),
        (RuntimeError("a bug"), "worker_error"),
    ],
)
async def test_a_success_whose_artifacts_cannot_be_stored_is_none(world: World, error: Exception, reason: str) -> None:
    world.store.errors = [error] * (ENGINE_REFUSALS + 1)
    assert await world.execute() == "failed"
    assert world.outcome == (reason, None)
    assert str(error) in world.message
    assert world.said == SAID


async def test_a_failure_whose_artifacts_cannot_be_stored_keeps_its_own_reason(world: World) -> None:
    world.engine.exit_code = 3
    world.store.errors = [ArtifactError("access denied")]
    assert await world.execute() == "failed"
    assert world.outcome == ("exit_code", 3)
    assert world.queue.outcome is not None
    assert world.queue.outcome.details["artifacts_error"] == "access denied"


async def test_artifacts_are_collected_again_when_the_engine_went_away_meanwhile(world: World) -> None:
    world.store.errors = [AWAY, AWAY]
    assert await world.execute() == "succeeded"
    assert len(world.queue.artifacts) == 1


async def test_a_run_that_wants_no_artifacts_is_not_searched_for_any(world: World) -> None:
    assert await world.execute(config={"artifacts": []}) == "succeeded"
    assert world.did("archive") == []


async def test_what_the_store_refuses_is_a_warning(world: World) -> None:
    world.store.warns = ["../../etc/passwd: leads out of /artifacts"]
    assert await world.execute() == "succeeded"
    assert ("warning", world.store.warns[0], {"reason": "artifact_refused"}) in world.queue.events


async def test_an_outcome_that_the_database_refuses_fails_the_run(world: World) -> None:
    world.queue.faults = {"complete": [Refused("22P05", "untranslatable character")]}
    assert await world.execute() == "failed"
    assert world.outcome == ("worker_error", None)
    assert world.message == "the database refused the outcome succeeded: 22P05"
    assert world.did("complete", "remove") == ["complete", "complete", "remove"]
