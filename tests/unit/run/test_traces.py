"""Spans that the tests on a real engine do not see, and the words for outcomes; tests/docker has whole traces."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.unit.fakes import RUN_ID, World
from worker.errors import ConfigurationError, ImageMissing
from worker.model.outcome import Outcome, Reason
from worker.run.traces import Traces, new_provider, result_of


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        (Reason.SUCCEEDED, "success"), (Reason.TTL, "success"),
        (Reason.CANCELED, "cancellation"), (Reason.TIMEOUT, "timeout"),
        (Reason.EXIT_CODE, "failure"), (Reason.OUT_OF_MEMORY, "failure"), (Reason.ENGINE_LOST, "error"),
        (Reason.WORKER_ERROR, "error"),
    ],
)  # fmt: skip
def test_result_of_a_run_in_the_words_of_the_conventions(reason: Reason, result: str) -> None:
    assert result_of(Outcome(None, reason, None)) == result


@pytest.mark.parametrize("error", [None, ImageMissing("tool:1", "no such tag")])
async def test_pull_is_a_span_also_if_it_fails(world: World, error: Exception | None) -> None:
    sent, provider = InMemorySpanExporter(), new_provider("1")
    provider.add_span_processor(SimpleSpanProcessor(sent))
    world.set(traces=Traces(provider, "host-a"))
    world.engine.here = False
    if error is not None:
        world.engine.faults["pull"] = [error]
    await world.execute()
    spans = {span.name: span for span in sent.get_finished_spans()}
    found = dict(spans["pull"].attributes or {})
    assert found["ops.image"] == "docker.io/library/tool:1"
    assert found["cicd.pipeline.task.run.result"] == ("success" if error is None else "error")
    assert found.get("error.type") == (None if error is None else "ImageMissing")
    assert {span.context.trace_id for span in spans.values()} == {RUN_ID.int}
    assert dict(spans["BUILD acme/nightly"].attributes or {})["cicd.pipeline.result"] == (
        "success" if error is None else "failure"
    )


def test_endpoint_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"traces_endpoint: needs the extra: pip install .*\[traces\]'"):
        Traces.sent_to("http://127.0.0.1:4318/v1/traces", "host-a", "1")
