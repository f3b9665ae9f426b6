"""The other pure parts of the Odoo tools: shards, cache, lock, URLs, messages, arguments."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from deploy.tools.odoo.odoo_tool import __main__ as program
from deploy.tools.odoo.odoo_tool import advisories, packages, python, restic, shards, smoke, versions
from deploy.tools.odoo.odoo_tool.cache import CHECKSUMS, UNUSED_SECONDS, Cache, digest, folder_digest
from deploy.tools.odoo.odoo_tool.pack import pack
from deploy.tools.odoo.odoo_tool.source import resolve_url
from deploy.tools.odoo.odoo_tool.steps import Failure, explain, read


def test_a_class_with_tests_has_a_tag(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(
        "class TestA(X):\n    def test_1(self): pass\n    def test_2(self): pass\n    def setUp(self): pass\n"
        "class Common(X):\n    def helper(self): pass\n"
    )
    (tmp_path / "tests" / "test_again.py").write_text("class TestA(X):\n    def test_2(self): pass\n")
    (tmp_path / "tests" / "test_broken.py").write_text("class TestB(:\n")
    assert shards.test_classes("m", tmp_path) == {"/m:TestA": ["test_1", "test_2"]}


@pytest.mark.parametrize(
    ("classes", "count", "expected"),
    [
        ({}, 4, ["/m,/n"]),
        ({"/m:A": 1.0}, 2, ["/m,/n"]),
        ({"/m:A": 1.0, "/m:B": 5.0, "/n:C": 3.0}, 2, ["/m,/n,-/n:C,-/m:A", "/n:C,/m:A"]),
        ({"/m:A": 1.0, "/m:B": 1.0}, 1, ["/m,/n"]),
    ],
)
def test_what_no_other_shard_runs_is_run_by_the_first(
    classes: dict[str, float], count: int, expected: list[str]
) -> None:
    assert shards.split(["m", "n"], classes, count) == expected


def test_a_class_without_an_earlier_run_counts_as_its_tests_do_on_average() -> None:
    tests = {"/m:A": ["test_1", "test_2"], "/m:B": ["test_1", "test_2", "test_3"]}
    assert shards.weights(tests, {}, 1) == {"/m:A": 2.0, "/m:B": 3.0}
    assert shards.weights(tests, {"/m:A": 10.0, "/x:Y": 7.0}, 1) == {"/m:A": 10.0, "/m:B": 15.0}


def test_a_class_that_takes_longer_than_a_part_is_split_by_its_tests() -> None:
    tests = {"/m:A": ["test_1", "test_2"], "/m:B": ["test_1", "test_2"]}
    seconds = {"/m:A": 9.0, "/m:A.test_1": 7.0, "/m:B": 3.0}
    assert shards.weights(tests, seconds, 2) == {"/m:A.test_1": 7.0, "/m:A.test_2": 4.5, "/m:B": 3.0}
    assert shards.weights(tests, seconds, 1) == {"/m:A": 9.0, "/m:B": 3.0}


def test_a_key_depends_on_where_a_text_ends() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_the_checksum_of_a_folder_is_that_of_its_sources(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = folder_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("2")
    (tmp_path / "b.pyc").write_text("2")
    assert folder_digest(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert folder_digest(tmp_path) != before


def test_a_cache_entry_is_found_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Cache(tmp_path)
    made = cache.make("wheels", "k", lambda folder: (folder / "a.whl").touch())
    assert cache.find("wheels", "k") == made
    (made / "a.whl").write_text("damaged")
    assert cache.find("wheels", "k") is None
    assert "wheels/k is damaged" in capsys.readouterr().out

    def killed(folder: Path) -> None:
        (folder / "a.whl").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make("wheels", "k", killed)
    assert cache.find("wheels", "k") is None
    (tmp_path / "wheels" / "k").mkdir()  # complete in name only
    assert cache.find("wheels", "k") is None
    assert not (tmp_path / "wheels" / "k" / CHECKSUMS).exists()


def test_of_two_runs_that_make_one_entry_both_get_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def slow(folder: Path) -> None:
        (folder / "dump").write_text("mine")
        cache.make("templates", "k", lambda other: (other / "dump").touch())

    assert (cache.make("templates", "k", slow) / "dump").read_text() == ""
    assert [path.name for path in (tmp_path / "templates").iterdir()] == ["k"]


def test_entries_that_nothing_uses_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.make("wheels", "old", lambda _: None)
    (tmp_path / "wheels" / ".part-killed").mkdir()
    now = (tmp_path / "wheels" / "old").stat().st_mtime
    monkeypatch.setattr("time.time", lambda: now + UNUSED_SECONDS + 60)
    cache.make("wheels", "new", lambda _: None)
    assert "old" not in {path.name for path in (tmp_path / "wheels").iterdir()}
    assert not (tmp_path / "wheels" / ".part-killed").exists()


def test_a_cache_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=f"cache {tmp_path / 'none'}: it is not a folder"):
        Cache(tmp_path / "none")


def item(name: str, **info: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": info}


def test_a_lock_has_the_hash_of_every_package() -> None:
    hashed = {"archive_info": {"hashes": {"sha256": "ab"}}}
    report = {"install": [item("zeep", **hashed), item("Babel", **hashed)]}
    assert python.lock(report) == "Babel==1.0 --hash=sha256:ab\nzeep==1.0 --hash=sha256:ab\n"


def test_a_lock_has_the_hash_of_a_wheel_that_was_built_too() -> None:
    lock = "Babel==1.0 --hash=sha256:ab\nodoo-addon-x==2 --hash=sha256:cd\n"
    assert python.with_wheels(lock, {"babel": "ab", "odoo_addon_x": "ef"}) == (
        "Babel==1.0 --hash=sha256:ab\nodoo-addon-x==2 --hash=sha256:cd --hash=sha256:ef\n"
    )


def test_a_package_without_a_hash_is_refused_by_name() -> None:
    with pytest.raises(Failure, match=r"requirements\.txt, mine: it comes from a place without a hash"):
        python.lock({"install": [item("mine", vcs_info={"vcs": "git"})]})


@pytest.mark.parametrize(
    ("parent", "url", "expected"),
    [
        ("https://git.example/acme/shop.git", "../library.git", "https://git.example/acme/library.git"),
        ("ssh://git@git.example:22/acme/shop.git", "../../oca/web.git", "ssh://git@git.example:22/oca/web.git"),
        ("git@git.example:acme/shop.git", "../library.git", "git@git.example:acme/library.git"),
        ("/srv/git/shop.git", "../library.git", "/srv/git/library.git"),
        ("https://git.example/acme/shop.git", "https://else.example/x", "https://else.example/x"),
    ],
)
def test_the_url_of_a_submodule_is_relative_to_its_repository(parent: str, url: str, expected: str) -> None:
    assert resolve_url(parent, url) == expected


def test_a_failure_begins_with_the_thing() -> None:
    assert explain(Failure("ref 'x': no", "push it")) == "ERROR: ref 'x': no\n  What to do: push it"


def test_the_failure_of_a_program_has_its_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failure, match="database x: no such thing"):
        read(["sh", "-c", "echo first >&2; echo no such thing >&2; exit 3"], thing="database x", advice="create it")
    assert "first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test", "--shards", "0"], "argument --shards: invalid positive value: '0'"),
        (["test", "--shardss", "2"], "unrecognized arguments: --shardss"),
        (["backup", "--database", 'x"y'], "argument --database: invalid database_name value"),
        (["publish"], "invalid choice: 'publish'"),
    ],
)
def test_wrong_arguments_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_apt_txt_asks_for_is_read_by_line() -> None:
    assert packages.asked("# fonts\nfonts-lato\n\nlibcairo2 # for reports\n") == [(2, "fonts-lato"), (4, "libcairo2")]


@pytest.mark.parametrize("line", ["a b", "--allow", "x=1.0", "UPPER"])
def test_a_line_of_apt_txt_is_one_name(line: str) -> None:
    with pytest.raises(Failure, match=r"apt\.txt, line 2: .* is not the name of a package"):
        packages.asked(f"git\n{line}\n")


def test_a_debian_package_that_the_image_lacks_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "apt.txt").write_text("git\nfonts-lato\n")
    assert packages.check(tmp_path, {"git": "1", "fonts-lato": "2"}) == ["git", "fonts-lato"]
    with pytest.raises(Failure, match=r"apt\.txt, line 2: the package fonts-lato is not in this image") as refused:
        packages.check(tmp_path, {"git": "1"})
    assert "--build-arg APT_PACKAGES='git fonts-lato'" in refused.value.advice


def test_the_same_content_has_the_same_bytes(tmp_path: Path) -> None:
    for name, when in (("one", 1_000_000_000), ("two", 1_500_000_000)):
        folder = tmp_path / name / "m"
        folder.mkdir(parents=True)
        for file in ("b.py", "a.py") if name == "one" else ("a.py", "b.py"):
            (folder / file).write_text(file)
            os.utime(folder / file, (when, when))
        (folder / "b.py").chmod(0o664 if name == "one" else 0o600)
        (folder / "c.pyc").touch()
        pack({"addons/m": folder}, tmp_path / f"{name}.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        assert archive.getnames() == ["addons/m/a.py", "addons/m/b.py"]


def test_a_link_that_leaves_its_addon_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "inside").touch()
    (tmp_path / "m" / "near").symlink_to("inside")
    pack({"m": tmp_path / "m"}, tmp_path / "x.tar.gz")
    (tmp_path / "m" / "far").symlink_to("../../secret")
    with pytest.raises(Failure, match="link m/far: it leads out of its add-on"):
        pack({"m": tmp_path / "m"}, tmp_path / "x.tar.gz")


def test_the_snapshot_is_in_the_last_message_of_restic() -> None:
    status = '{"message_type": "status", "percent_done": 1}'
    last = '{"message_type": "summary", "snapshot_id": "ab12", "data_added": 5, "total_bytes_processed": 900}'
    assert restic.summary(f"no JSON\n{status}\n{last}\n") == restic.Snapshot("ab12", 5, 900)
    with pytest.raises(Failure, match="restic reported no snapshot"):
        restic.summary(status)


def test_a_backup_without_a_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="secret restic_password: it is missing"):
        restic.Repository("/backups", tmp_path, tmp_path, "acme").environment()


def test_what_the_system_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(program.TOOLS, "build", lambda options, _: bool(options.cache.read_text()))
    monkeypatch.setenv("OPS_ARTIFACTS_DIR", str(tmp_path))
    assert program.main(["build", "--cache", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-2] == f"ERROR: {tmp_path}: Is a directory"
    assert (tmp_path / "summary.md").read_text().startswith(f"- **FAILED** {tmp_path}: Is a directory\n")


# --- upgrades ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("19.0", "19.0", "click-odoo-update"),
        ("18.0", "19.0", "OpenUpgrade"),
        ("16.0", "19.0", "not one step: a run makes one step, since an image has one Odoo: 17.0, 18.0, 19.0."),
        ("19.0", "18.0", "not one step: an older Odoo cannot read a newer database"),
    ],
)  # fmt: skip
def test_an_upgrade_is_one_step(source: str, target: str, expected: str) -> None:
    modules = {"openupgrade_framework", "openupgrade_scripts"}
    try:
        way = versions.way_of(source, target, modules)
    except Failure as failure:
        way = f"{failure.thing}: {failure.advice}"
    assert expected in way


def test_a_step_to_the_next_version_needs_openupgrade() -> None:
    with pytest.raises(Failure, match=r"upgrade from 18\.0 to 19\.0: the code has no openupgrade_scripts$"):
        versions.way_of("18.0", "19.0", {"openupgrade_framework"})


def told(title: str, since: str, until: str, severity: str = "low", *modules: str) -> dict[str, object]:
    return {"title": title, "from_version": since, "to_version": until, "severity": severity,
            "affects_modules": list(modules)}  # fmt: skip


@pytest.mark.parametrize("version", ["19.0", "19.0.1.3", "19.0-20260102", "19.0+e.20260102", "saas~19.0"])
def test_a_version_that_says_more_has_the_same_series(version: str) -> None:
    assert versions.series(version) == (19, 0)


def test_advisories_are_those_of_installed_modules_and_of_the_steps_between_the_worst_first() -> None:
    text = json.dumps([
        told("all", "18.0", "19.0"), told("gone", "18.0", "19.0", "critical", "sale"),
        told("ours", "18.0", "19.0", "high", "stock", "base"), told("before", "17.0", "18.0"),
        told("now", "19.0", "19.0"),
        told("later", "19.0", "20.0"), told("across", "17.0", "19.0"),
    ])  # fmt: skip
    found = advisories.applicable(text, "18.0", "19.0", {"base", "stock", "web"})
    assert [(each["title"], each["modules"]) for each in found] == [
        ("ours", ["base", "stock"]),
        ("all", []),
        ("now", []),
    ]
    assert advisories.applicable("", "18.0", "19.0", {"base"}) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "advisories: expected JSON: "),
        ("{}", "advisories: expected a JSON array of objects"),
        ("[1]", r"advisories\[0\]: expected from_version, to_version, severity and title"),
        (json.dumps([told("x", "18", "19"), told("x", "saas", "19")]), r"advisories\[1\]: expected .* got ValueError"),
        (json.dumps([told("x", "18.0", "19.0", "bad")]), r"advisories\[0\]: expected .* got ValueError"),
    ],
)
def test_advisories_that_are_no_such_list_are_refused(text: str, message: str) -> None:
    with pytest.raises(Failure, match=message):
        advisories.applicable(text, "18.0", "19.0", set())


def test_the_fields_of_a_view_are_without_those_of_views_within_it() -> None:
    view = ET.fromstring(  # noqa: S314 - ours
        "<form><sheet><field name='a'/><group><field name='b'><list><field name='inner'/></list></field></group>"
        "<field name='a'/></sheet></form>"
    )
    assert smoke.names(view) == ["a", "b"]
