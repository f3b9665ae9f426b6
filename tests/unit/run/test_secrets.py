"""Which secret of the host's folder a run gets, the error for a missing one, and that no report contains one."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.archives import entry, tar
from tests.unit.fakes import AWAY, RUN_ID, World
from tests.unit.journal import frame
from worker.engine.containers import _held_value
from worker.errors import ArtifactError, ConfigurationError, EngineError, SpecError
from worker.model.container import MAX_SECRET, Secret
from worker.model.spec import HostPolicy
from worker.run.engine_retry import ENGINE_REFUSALS
from worker.run.secrets import SecretsFolder, changed_values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "acme").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "token").write_bytes(b"common\n")
    (tmp_path / "license").write_bytes(b"\x00\xff")
    (tmp_path / "acme" / "token").write_bytes(b"acme's")
    (tmp_path / "other" / "own").write_bytes(b"other's")
    return tmp_path


def test_secret_of_the_project_wins_and_bytes_are_unchanged(folder: Path) -> None:
    secrets = SecretsFolder(folder)
    assert secrets.read("acme", ["token", "license"]) == (Secret("token", b"acme's"), Secret("license", b"\x00\xff"))
    assert secrets.read("other", ["token"]) == (Secret("token", b"common\n"),)


@pytest.mark.parametrize("workspace_key", ["acme", "", "..", ".", "other/", "acme/../other", "acme\n"])
@pytest.mark.parametrize("name", ["own", "other", "nothing"])
def test_secret_of_another_project_is_missing(folder: Path, workspace_key: str, name: str) -> None:
    with pytest.raises(SpecError) as caught:
        SecretsFolder(folder / "acme" / "..").read(workspace_key, ["token", name])
    assert (caught.value.reason, caught.value.field) == ("secret_missing", "secrets")
    assert str(caught.value).startswith(f"secret {name!r} is missing: this host has none of that name for project")
    assert str(folder) not in str(caught.value)


def test_host_without_a_folder_names_the_setting() -> None:
    with pytest.raises(SpecError, match=r"'token' is missing: this host has none: its setting secrets_dir is not set"):
        SecretsFolder().read("acme", ["token"])
    assert SecretsFolder().read("acme", []) == ()


def test_missing_folder_is_a_configuration_error(folder: Path) -> None:
    for wrong in (folder / "missing", folder / "token"):
        with pytest.raises(ConfigurationError, match=r"secrets_dir: there is no such folder"):
            SecretsFolder(wrong)


def test_large_or_unreadable_secret_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "large").write_bytes(bytes(MAX_SECRET + 1))
    (folder / "largest").write_bytes(bytes(MAX_SECRET))
    assert len(SecretsFolder(folder).read("acme", ["largest"])[0].value) == MAX_SECRET
    with pytest.raises(SpecError, match="'large' is missing: it is larger than 64 KiB"):
        SecretsFolder(folder).read("acme", ["large"])

    def refused(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SpecError, match="'token' is missing: the worker cannot read it: Permission denied"):
        SecretsFolder(folder).read("acme", ["token"])


def test_unreadable_secret_of_the_project_is_not_replaced_by_the_common_one(folder: Path) -> None:
    (folder / "acme" / "token").unlink()
    (folder / "acme" / "token").symlink_to("token")  # a loop
    with pytest.raises(SpecError, match="the worker cannot read it"):
        SecretsFolder(folder).read("acme", ["token"])


def test_missing_secrets_that_are_not_required_are_left_out(folder: Path) -> None:
    assert SecretsFolder(folder).read("acme", ["own", "token"], required=False) == (Secret("token", b"acme's"),)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (tar(entry("token", content=b"x" * MAX_SECRET)), b"x" * MAX_SECRET),
        (tar(entry("token", content=b"x" * (MAX_SECRET + 1))), None),
        (tar(entry("token", tarfile.SYMTYPE, link="/etc/shadow")), None),
        (tar(entry("token", content=b"hunter22"))[:515], None),
        (tar(), None),
    ],
    ids=["the largest", "too large", "a link", "cut", "gone"],
)
def test_secret_is_read_from_a_container(data: bytes, value: bytes | None) -> None:
    assert _held_value(iter([data[:100], b"", data[100:]])) == value


def test_read_of_a_container_ends_after_the_secret() -> None:
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        yield tar(entry("token", content=b"hunter22"))[:1024]
        while True:
            read.append(1)
            yield b"x" * 1024

    assert _held_value(endless()) == b"hunter22"
    assert read == []


def test_values_that_only_a_container_holds_are_limited_in_size() -> None:
    """Twenty files of 64 KiB, all in short lines: their forms took 1.1 GB."""
    known = [Secret("token", b"of the host")]
    held = [*known, *(Secret(f"s{n}", b"%06d\n" % n * (MAX_SECRET // 7)) for n in range(20)), Secret("old", b"rotated")]
    assert changed_values(held, known) == [held[1].value]
    assert changed_values([known[0], held[-1]], known) == [b"rotated"]


def test_repr_of_a_secret_has_no_value() -> None:
    assert "hunter22" not in f"{Secret('token', b'hunter22')!r} {Secret('token', b'hunter22')}"


def test_secret_becomes_an_environment_variable() -> None:
    assert Secret("pg-pass.v2", b"hunter22\n").variable == ("PG_PASS_V2", "hunter22")
    for odd in (b"a\0b", b"\xff"):
        with pytest.raises(SpecError, match="secret 'token' cannot be an environment variable"):
            Secret("token", odd).variable  # noqa: B018 - a property that raises


# --- in a run -------------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {"secrets": ["token"], "env": {"TOKEN": "workflow", "OTHER": "1"}}


@pytest.fixture
def world(world: World, tmp_path: Path) -> World:
    (tmp_path / "token").write_bytes(b"hunter22\n")
    world.set(secrets=SecretsFolder(tmp_path))
    suite = b"<testsuite><testcase name='hunter22'><failure/></testcase></testsuite>"
    world.store.files = {"junit.xml": suite, "summary.md": b"hunter22"}
    world.engine.frames = [frame(1, b"the token is hunter22\n"), frame(2, b'{"t": "aHVudGVyMjI="}\n')]
    return world


def reported(world: World) -> str:
    """Everything that the run reported."""
    queue = world.queue
    return repr((queue.lines, queue.events, queue.artifacts, queue.report, queue.outcome))


async def test_secrets_are_files_only(world: World, tmp_path: Path) -> None:
    assert await world.execute(config=CONFIG) == "succeeded"
    assert world.engine.created is not None
    _, spec, secrets = world.engine.created
    assert secrets == (Secret("token", b"hunter22\n"),)
    assert {**spec.env, **CONFIG["env"]} == spec.env
    assert world.said == [(1, "the token is ***"), (2, '{"t": "***="}')]
    assert world.store.redact("hunter22.txt") == "***.txt", "names of artifacts are masked with the same secrets"


async def test_secrets_as_env_makes_them_variables_too(world: World, tmp_path: Path) -> None:
    (tmp_path / "token").rename(tmp_path / "ops_run_id")
    (tmp_path / "token").write_bytes(b"hunter22\n")
    world.set(policy=HostPolicy(secrets_as_env=True))
    assert await world.execute(config=CONFIG | {"secrets": ["token", "ops_run_id"]}) == "succeeded"
    assert world.engine.created is not None
    env = world.engine.created[1].env
    assert (env["TOKEN"], env["OTHER"], env["OPS_RUN_ID"]) == ("hunter22", "1", str(RUN_ID))


async def test_missing_secret_fails_the_run_before_any_engine_call(world: World) -> None:
    world.set(secrets=SecretsFolder())
    assert await world.execute(config=CONFIG) == "failed"
    assert world.outcome == ("secret_missing", None)
    assert "secret 'token' is missing" in world.message
    assert world.did("image", "pull", "create", "start") == []


@pytest.mark.parametrize(
    "fault",
    [
        {"create": [EngineError(400, "invalid: hunter22")]},
        {"start": [ValueError("hunter22")]},
        {"start": [EngineError(400, "exec aHVudGVyMjI: not found")]},
        {"start": [EngineError(500, "hunter22")] * (ENGINE_REFUSALS + 1)},
    ],
)
async def test_message_of_a_failure_is_redacted(
    world: World, tmp_path: Path, fault: dict[str, list[Exception]]
) -> None:
    world.engine.faults = fault
    with capture_logs() as logged:
        assert await world.execute(config=CONFIG) == "failed"
    assert "***" in world.message
    assert [line["error_message"] for line in logged if line["event"] == "run finished"] == [world.message]
    for said in (reported(world), repr(logged)):
        assert "hunter22" not in said
        assert "aHVudGVyMj" not in said
    tracebacks = [line["exception"] for line in logged if line["event"] == "the worker failed at this run"]
    assert all("ValueError: ***" in each for each in tracebacks)


async def test_warnings_and_details_are_redacted(world: World, tmp_path: Path) -> None:
    world.store.warns = ["artifact 'hunter22' refused"]
    world.store.errors = [ArtifactError("cannot store hunter22.txt")]
    world.engine.exit_code = 1
    assert await world.execute(config=CONFIG) == "failed"
    assert world.artifacts_error == "cannot store ***.txt"
    assert "hunter22" not in reported(world)


@pytest.mark.parametrize("on_host", ["hunter22", "rotated-since", None])
async def test_adopted_run_is_redacted_by_the_secrets_of_its_container_and_of_the_host(
    world: World, tmp_path: Path, on_host: str | None
) -> None:
    world.engine.earlier(**CONFIG)
    world.engine.held = (Secret("token", b"hunter22\n"),)
    world.engine.frames = [frame(1, b"hunter22 rotated-since\n")]
    (tmp_path / "token").unlink() if on_host is None else (tmp_path / "token").write_text(on_host)
    assert await world.execute(config=CONFIG, status="running") == "succeeded"
    assert world.said == [(1, "*** ***" if on_host == "rotated-since" else "*** rotated-since")]
    assert world.did("image", "create") == []


async def test_read_of_the_secrets_of_a_container_is_repeated(world: World, tmp_path: Path) -> None:
    world.engine.earlier(**CONFIG)
    world.engine.held = (Secret("token", b"hunter22\n"),)
    world.engine.faults = {"secrets": [AWAY] * 4}
    (tmp_path / "token").unlink()
    assert await world.execute(config=CONFIG, status="running") == "succeeded"
    assert "hunter22" not in reported(world)


async def test_adopted_run_without_secrets_reads_none(world: World) -> None:
    world.engine.earlier()
    world.engine.held = (Secret("token", b"planted by the program"),)
    assert await world.execute(status="running") == "succeeded"
    assert world.did("secrets") == []


async def test_container_that_was_never_started_is_created_again_with_current_secrets(
    world: World, tmp_path: Path
) -> None:
    world.engine.become("created")
    assert await world.execute(config=CONFIG, status="running") == "succeeded"
    assert world.engine.created is not None
    assert world.engine.created[2] == (Secret("token", b"hunter22\n"),)
    assert [event[1] for event in world.queue.events] == ["container created"]
