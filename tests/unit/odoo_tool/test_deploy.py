"""The pure parts of a deploy: the files of the volume, the switch of the filestore, comparisons, and the runtime."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.tools.odoo.odoo_tool import __main__ as program
from deploy.tools.odoo.odoo_tool import comparing, database, preview, supervisor, switching
from deploy.tools.odoo.odoo_tool.comparing import Facts, compare
from deploy.tools.odoo.odoo_tool.page import Page
from deploy.tools.odoo.odoo_tool.steps import Failure
from deploy.tools.odoo.odoo_tool.supervisor import Seen, Served, decide
from deploy.tools.odoo.odoo_tool.volume import Journal, Volume

JOURNAL = Journal("r2", "prod", "r1", existed=True, began="2026-01-02", old_oid=10, new_oid=20)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    made = Volume(tmp_path)
    made.ensure()
    return made


@pytest.mark.parametrize(
    ("seen", "served", "expected"),
    [
        (Seen(""), Served(), "close"),
        (Seen("r1"), Served(), "start"),
        (Seen("r1"), Served("r1"), "wait"),
        (Seen("r2"), Served("r1"), "stop"),
        (Seen("r1", restart=2), Served("r1", 1), "stop"),
        (Seen("r1", maintenance=True), Served("r1"), "stop"),
        (Seen("r1", maintenance=True), Served(), "close"),
        (Seen("r1", maintenance=True, interrupted=True), Served("r1"), "stop"),
        (Seen("r1", maintenance=True, interrupted=True), Served(), "recover"),
        (Seen("r2", interrupted=True), Served(), "recover"),
    ],
)
def test_the_runtime_does_what_the_volume_says(seen: Seen, served: Served, expected: str) -> None:
    assert decide(seen, served, may_start=True) == expected


def test_a_crash_delays_the_next_start_and_nothing_else() -> None:
    assert decide(Seen("r1"), Served(), may_start=False) == "wait"
    assert decide(Seen("r1", maintenance=True), Served(), may_start=False) == "close"
    assert [supervisor.pause(n) for n in (0, 1, 2, 3, 7, 50)] == [0, 1, 2, 4, 60, 60]


def test_the_page_answers_503_with_the_text_of_the_site(volume: Volume) -> None:
    (volume.state / "maintenance.html").write_text("<p>Back at noon</p>")
    page = Page(0, "maintenance", volume.state / "maintenance.html")
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{page.server_address[1]}/shop?x=1", timeout=10)
        assert (refused.value.code, refused.value.read()) == (503, b"<p>Back at noon</p>")
        assert refused.value.headers["Retry-After"] == "5"
        refused.value.close()
    finally:
        page.close()


def test_a_volume_that_cannot_be_written_does_not_stop_the_runtime(
    volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = supervisor.Runtime(volume, 0, [], volume.folder)
    (volume.state / "status.json").mkdir()
    assert runtime.tick() > supervisor.TICK_SECONDS
    assert "WARNING: runtime: [Errno 21] Is a directory" in capsys.readouterr().out
    (volume.state / "status.json").rmdir()
    assert runtime.tick() == supervisor.TICK_SECONDS
    assert volume.read("status") == {"state": "empty", "release": "", "maintenance": None}
    runtime.close_page()


def test_a_killed_deploy_is_seen_by_its_lock(volume: Volume) -> None:
    assert not supervisor.look(volume, working=False).interrupted
    volume.note(JOURNAL)
    with volume.held("lock") as mine:
        assert mine
        assert not supervisor.look(volume, working=False).interrupted
    assert supervisor.look(volume, working=False).interrupted
    assert not supervisor.look(volume, working=True).interrupted


def test_the_journal_of_a_deploy_becomes_that_of_the_previous_one(volume: Volume) -> None:
    assert volume.journal() is None
    volume.note(replace(JOURNAL, reverting=True))
    assert volume.journal() == replace(JOURNAL, reverting=True)
    volume.close_journal(keep=True)
    assert (volume.journal(), volume.journal("previous")) == (None, replace(JOURNAL, reverting=True))


def test_a_deploy_ends_only_its_own_maintenance(volume: Volume) -> None:
    volume.maintain("by hand")
    volume.end_maintenance("r2")
    assert volume.maintenance == "by hand"
    volume.end_maintenance("by hand")
    assert volume.maintenance is None


@pytest.mark.parametrize("text", ["", "by hand"])
def test_maintenance_of_a_person_stays_and_no_deploy_begins(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setenv("OPS_ARTIFACTS_DIR", str(volume.folder))
    (volume.state / "maintenance").write_text(text)
    for words in (["--database", "prod"], ["--revert"]):
        assert program.main(["deploy", "--data", str(volume.folder), *words]) == 1
        assert f"ERROR: {volume.state}/maintenance: a person made it" in capsys.readouterr().out
    name = "20260102T030405Z-4f2a91c07be1"
    assert volume.maintain(name) == text
    volume.end_maintenance(name)
    assert volume.maintenance == text
    (volume.state / "maintenance").write_text(name)  # a deploy that was killed left it
    volume.check_maintenance()


def filestores(volume: Volume) -> dict[str, str]:
    return {path.name: (path / "file").read_text() for path in sorted((volume.folder / "filestore").iterdir())}


def silent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server that has no database and is asked for these statements."""
    asked: list[str] = []

    def query(sql: str, *_: object) -> str:
        asked.append(sql)
        return ""

    monkeypatch.setattr(database, "query", query)
    return asked


def place(volume: Volume, *names: str) -> None:
    """The filestores of these databases; ``old`` and ``new`` in them say whose files they are."""
    for name, content in (each.split("=") for each in names):
        volume.filestore(name).mkdir()
        (volume.filestore(name) / "file").write_text(content)


@pytest.mark.parametrize(
    "found", [("prod=old", "prod__new=new"), ("prod__old=old", "prod__new=new"), ("prod=new", "prod__old=old")]
)
@pytest.mark.parametrize("switched", [True, False])
def test_the_filestore_follows_the_databases_from_every_state(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], *, switched: bool
) -> None:
    """Between its two renames, the filestore is in one of three states."""
    asked = silent(monkeypatch)
    monkeypatch.setattr(switching, "oid", lambda _: 20 if switched else 10)
    place(volume, *found)
    switching.forward(volume, JOURNAL)
    switching.forward(volume, JOURNAL)
    assert filestores(volume) == {"prod": "new", "prod__old": "old"}
    assert volume.current == "r2"
    switching.backward(volume, JOURNAL)
    assert filestores(volume) == {"prod": "old", "prod__new": "new"}
    assert volume.current == "r1"
    assert any("rename" in sql for sql in asked) == switched


def test_the_filestore_of_production_stays_where_nothing_was_switched(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(monkeypatch)
    place(volume, "prod=old")
    switching.backward(volume, replace(JOURNAL, new_oid=0))
    assert filestores(volume) == {"prod": "old"}


@pytest.mark.parametrize("name", ["prod__old", "prod__new"])
def test_a_stale_filestore_that_cannot_be_deleted_is_named(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(database, "drop", lambda _: None)
    place(volume, "prod__old=old", "prod__new=new")
    switching.make_space(volume, "prod", "r3")
    assert filestores(volume) == {}
    volume.filestore(name).write_text("not a folder, so it is not deleted")
    with pytest.raises(Failure, match=f"filestore/{name}: it cannot be deleted"):
        switching.make_space(volume, "prod", "r3")


def test_a_first_deploy_that_goes_back_leaves_nothing(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    silent(monkeypatch)
    place(volume, "prod__new=new")
    first = replace(JOURNAL, existed=False, previous="")
    switching.forward(volume, first)
    switching.backward(volume, first)
    assert filestores(volume) == {"prod__new": "new"}
    assert volume.current == ""


def test_differences_are_named_and_tables_that_were_not_read_too() -> None:
    before = Facts({"a": "1 rows", "b": "2 rows", "c": "3 rows"}, ("d",))
    assert compare(before, before).different == ()
    assert str(compare(before, replace(before, left_out=("b", "d")))) == (
        "all 2 tables and folders of files have the same rows and checksums as before; "
        "not compared for want of time: b, d"
    )
    after = Facts({"a": "1 rows", "b": "9 rows"}, ("d",))
    assert str(compare(before, after)) == "2 of 3 differ: b had 2 rows and has 9 rows; c had 3 rows and has nothing"


def test_a_file_that_was_written_in_place_changes_the_figures(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "abcd").write_text("1")
    before = comparing.files(tmp_path)
    assert list(before) == ["filestore/ab"]
    assert comparing.files(tmp_path) == before
    (tmp_path / "ab" / "abcd").write_text("2")
    os.utime(tmp_path / "ab" / "abcd", (1, 1))
    assert comparing.files(tmp_path) != before


def test_a_deploy_needs_a_database_and_one_volume_has_one_deploy(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPS_ARTIFACTS_DIR", str(volume.folder))
    monkeypatch.setattr(program, "LOCK_SECONDS", 0)
    assert program.main(["deploy", "--data", str(volume.folder)]) == 1
    assert "ERROR: --database: it is missing" in capsys.readouterr().out
    with volume.held("lock"):
        assert program.main(["deploy", "--data", str(volume.folder), "--database", "prod"]) == 1
    assert f"ERROR: volume {volume.folder}: another deploy works on it" in capsys.readouterr().out


def test_the_health_check_believes_the_answer_and_not_the_status(volume: Volume) -> None:
    page = Page(0, "maintenance", volume.state / "none")
    try:
        port = page.server_address[1]
        for state, healthy in (("maintenance", True), ("empty", True), ("serving", False), ("failing", False)):
            (volume.state / "status.json").write_text(json.dumps({"state": state}))
            assert supervisor.check(volume, port) == healthy, state
    finally:
        page.close()
    (volume.state / "status.json").write_text(json.dumps({"state": "maintenance"}))
    assert not supervisor.check(volume, port)


def test_a_preview_touches_neither_a_release_nor_a_database_that_is_there(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    databases = ["preview"]
    monkeypatch.setattr(database, "await_server", lambda: None)
    monkeypatch.setattr(switching, "oid", lambda name: int(name in databases))
    with pytest.raises(Failure, match="database preview: the server has it already"):
        preview.check_place(volume)
    databases.clear()
    preview.check_place(volume)
    volume.serve("r1")
    with pytest.raises(Failure, match="it has the release r1"):
        preview.check_place(volume)
    assert program.main(["runtime", "--data", str(volume.folder), "--repository", "ssh://x/y.git"]) == 1
    assert "ERROR: --repository and --source: only a preview takes them" in capsys.readouterr().out
