"""Task groups, backoff and time limits."""

from __future__ import annotations

import anyio
import pytest
from structlog.testing import capture_logs

from worker.concurrency import TimeLimit, backoff, cancel_on, task_group


@pytest.mark.parametrize(("first", "cap"), [(0.1, 5.0), (1.0, 30.0)])
def test_backoff_grows_to_its_cap_with_jitter(first: float, cap: float) -> None:
    seen = {attempt: [backoff(attempt, first=first, cap=cap) for _ in range(200)] for attempt in [*range(20), 10**9]}
    assert all(first / 2 <= seconds <= cap for values in seen.values() for seconds in values)
    assert all(len(set(values)) > 100 for values in list(seen.values())[1:])
    assert max(seen[0]) <= first
    assert max(seen[1]) <= 2 * first
    assert max(seen[10**9]) > cap / 2


async def test_task_group_raises_the_first_error_and_logs_the_others() -> None:
    async def fail(error: Exception) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    with capture_logs() as logged, pytest.raises(KeyError, match="first"):
        async with task_group() as tasks:
            tasks.start_soon(fail, ValueError("second"))
            await anyio.lowlevel.checkpoint()
            raise KeyError("first")
    assert [line["error"] for line in logged] == ["ValueError('second')"]


async def test_cancel_on_an_event_that_is_set_cancels_at_the_first_checkpoint() -> None:
    event = anyio.Event()
    event.set()
    async with cancel_on(event):
        await anyio.lowlevel.checkpoint()
        pytest.fail("not cancelled")


async def test_time_limit_counts_over_several_blocks() -> None:
    limit = TimeLimit(60)
    for left in (60, 59.99):
        with limit.running():
            await anyio.sleep(0.02)
        assert limit._left < left
    with pytest.raises(TimeoutError), anyio.fail_after(30), limit.running():
        limit.shorten(0.01)
        await anyio.sleep_forever()


async def test_time_limit_does_not_count_while_waiting() -> None:
    limit = TimeLimit(0.3)
    with limit.running():
        with limit.waiting():
            with limit.waiting():
                await anyio.sleep(0.2)
            await anyio.sleep(0.2)
        await anyio.sleep(0.01)


async def test_time_limit_shortened_while_waiting_holds_afterwards() -> None:
    limit = TimeLimit(3600)
    waited = False
    with pytest.raises(TimeoutError), anyio.fail_after(30), limit.running():
        with limit.waiting():
            limit.shorten(0.05)
            await anyio.sleep(0.1)
        waited = True
        await anyio.sleep_forever()
    assert waited
