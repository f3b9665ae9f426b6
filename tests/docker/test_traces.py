"""Traces of real runs, as a collector receives them over OTLP/HTTP."""

from __future__ import annotations

import gzip
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.docker.test_services import server
from tests.support.docker import WAITS, Plane, until
from tests.support.receivers import listening


class Collector:
    """Keeps the spans that it receives."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.port = 0

    def receive(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.add(attributes(resource.resource)["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    @property
    def endpoint(self) -> tuple[str, str]:
        return ("--traces-endpoint", f"http://127.0.0.1:{self.port}")


@contextmanager
def collecting() -> Iterator[Collector]:
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_whole = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            made.receive(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200 if is_whole else 404)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as made.port:
        yield made


def attributes(of: Any) -> dict[str, str]:
    return {it.key: it.value.string_value for it in of.attributes}


def check_tree(spans: list[Span], run_id: uuid.UUID, root: Span) -> None:
    """Every span is in the trace of the run, and below its first one, which no other span is above."""
    assert {span.trace_id for span in spans} == {run_id.bytes}
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}


async def test_trace_of_a_run_has_the_parts_of_its_life(plane: Plane) -> None:
    run_id = await plane.shell(
        "echo $TRACEPARENT; echo kept > /artifacts/a.txt; exit 3", services=[server(plane.image)]
    )
    with collecting() as collector:
        await plane.work(*collector.endpoint)
    spans = {span.name: span for span in collector.spans}
    workflow = await plane.db.fetchval("select slug || '/' || w.name from ops.projects as p, ops.workflows as w")
    root = spans.pop(f"BUILD {workflow}")
    assert spans.keys() == {"queue", "services", "run", "artifacts"}
    assert (len(collector.spans), collector.services) == (5, {"ops-worker"})
    check_tree(collector.spans, run_id, root)
    assert root.kind == Span.SPAN_KIND_SERVER
    assert attributes(root).items() >= {
        "cicd.pipeline.name": workflow, "cicd.pipeline.run.id": str(run_id), "cicd.pipeline.action.name": "BUILD",
        "cicd.pipeline.result": "failure", "error.type": "exit_code", "cicd.worker.id": f"{plane.name}-worker",
    }.items()  # fmt: skip
    run = attributes(spans["run"])
    assert (run["cicd.pipeline.task.type"], run["cicd.pipeline.task.run.result"]) == ("build", "failure")
    times = [(spans[name].start_time_unix_nano, spans[name].end_time_unix_nano) for name in spans]
    assert all(root.start_time_unix_nano <= began <= ended <= root.end_time_unix_nano for began, ended in times)
    parent = f"00-{run_id.hex}-{spans['run'].span_id.hex()}-01"
    assert await plane.messages(run_id) == [parent], "the program can continue the trace"


async def test_adopted_run_stays_in_its_trace(plane: Plane) -> None:
    run_id = await plane.shell(f"echo $TRACEPARENT; {WAITS}")
    with collecting() as collector:
        async with plane.worker(*collector.endpoint) as first:
            await plane.until_logged(run_id, "up")
            await until(lambda: collector.named("queue"))
            first.signal(signal.SIGKILL)
            await first.wait()
        async with plane.worker(*collector.endpoint) as second:
            await second.until_said("run adopted")
            await plane.release(run_id)
            await plane.until(run_id, "succeeded")
            second.signal(signal.SIGTERM)
            assert await second.wait() == 0
    [root] = [span for span in collector.spans if not span.parent_span_id]
    check_tree(collector.spans, run_id, root)
    [run], [_] = collector.named("run"), collector.named("queue")
    assert (await plane.messages(run_id))[0] == f"00-{run_id.hex}-{run.span_id.hex()}-01"


async def test_collector_that_does_not_answer_ends_no_run_and_keeps_no_worker(plane: Plane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run_id = await plane.shell("echo done")
        await plane.work("--traces-endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (await plane.run(run_id))["status"] == "succeeded"
    run_id = await plane.shell("echo done; echo $TRACEPARENT")
    worker = await plane.work("--traces-endpoint", "http://127.0.0.1:9")
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert [it["event"] for it in worker.said].count("traces are not delivered") <= 1
    plain = await plane.shell('echo "[$TRACEPARENT]"')
    await plane.work()
    assert await plane.messages(plain) == ["[]"], "off by default"
