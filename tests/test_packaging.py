"""What leaves the checkout: the wheel, and the files under ``deploy/`` that speak of the worker's settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.version import Version
from pydantic_core import PydanticUndefined

from tests.support.debian import libraries, unpacked
from worker.cli.parser import parse
from worker.cli.settings import FLAG_ONLY, PREFIX, Settings

pytestmark = pytest.mark.xdist_group("packaging")  # one process builds the wheel

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "deploy" / "ops-worker.service"
UNITS = (UNIT, ROOT / "deploy" / "ops-worker-console.service")
EXAMPLE = ROOT / "deploy" / "worker.env.example"
NO_LINE = FLAG_ONLY | {"env_file"}


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command without this process's settings of a worker, and without the checkout on Python's path."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith((PREFIX, "PYTHONPATH", "COV_"))}
    done = subprocess.run(command, cwd=cwd, env=clean | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done


# --- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as ``make wheel`` does."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are this environment's, and the checkout is not."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", home / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home.parent)
    packages = run(
        home / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home
    ).stdout
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(packages.strip(), "dependencies.pth").write_text("\n".join(folders))  # their own .pth files do not count
    return home / "bin"


def test_the_wheel_holds_the_package_the_sql_and_the_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "worker").rglob("*.py")}
    files = [*(ROOT / "sql").glob("catalog.*"), *(ROOT / "sql" / "migrations").iterdir()]
    files += (ROOT / "sql" / "rollback").iterdir()
    sql = {f"worker/{path.relative_to(ROOT)}" for path in files}
    assert {"worker/sql/catalog.sql", "worker/sql/catalog.txt"} <= sql
    pages = (ROOT / "worker" / "console").glob("[st]*/*")  # static and templates
    modules |= {str(path.relative_to(ROOT)) for path in pages if path.parent.name in ("static", "templates")}
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == modules | sql
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in information}


def test_the_installed_command_brings_the_schema_from_anywhere(
    installed: Path, empty_db_url: str, tmp_path: Path
) -> None:
    migrate = run(installed / "ops-worker", "db", "migrate", cwd=tmp_path, OPS_WORKER_DATABASE_URL=empty_db_url)
    applied = re.findall(r"^applied +(\S+)$", migrate.stdout, re.MULTILINE)
    assert applied == sorted(path.name for path in (ROOT / "sql" / "migrations").glob("*.sql"))
    run(installed / "ops-worker", "db", "verify", cwd=tmp_path, OPS_WORKER_DATABASE_URL=empty_db_url)
    run(installed / "ops-worker", "db", "rollback", applied[0].partition("_")[0], "--yes", cwd=tmp_path,
        OPS_WORKER_DATABASE_URL=empty_db_url)  # fmt: skip
    where = run(installed / "python", "-c", "import worker; print(worker.__file__)", cwd=tmp_path).stdout
    assert Path(where).is_relative_to(installed.parent)


def version_of(folder: Path) -> str:
    return run(sys.executable, folder / "scripts" / "version.py", cwd=folder).stdout.strip()


def test_the_installed_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "ops-worker", "--version", cwd=tmp_path).stdout == f"ops-worker {version_of(ROOT)}\n"


def test_each_build_is_newer_than_the_one_before_and_a_tagged_one_is_the_release(tmp_path: Path) -> None:
    """So that `pip install --upgrade` takes a rebuilt wheel."""

    def git(*words: str, time: int = 0, cwd: Path = tmp_path) -> None:
        who = {"GIT_AUTHOR_NAME": "x", "GIT_COMMITTER_NAME": "x", "EMAIL": "x@example.org"}
        run("git", *words, cwd=cwd, **who, GIT_COMMITTER_DATE=f"{1_700_000_000 + time} +0000")

    (tmp_path / "scripts").mkdir()
    program = tmp_path / "scripts" / "version.py"
    shutil.copy(ROOT / "scripts" / "version.py", program)
    found = [version_of(tmp_path)]
    assert found == ["0.1.0.dev0"]
    git("init", "--quiet")
    for time in (0, 60):
        program.write_text(f"{program.read_text()}# {time}\n")
        git("add", ".")
        git("commit", "--quiet", "--message=x", time=time)
        found.append(version_of(tmp_path))
    program.write_text(f"{program.read_text()}# changed\n")
    found.append(version_of(tmp_path))
    assert re.fullmatch(r"0\.1\.0\.dev20231114221320\+g[0-9a-f]+", found[1])
    assert re.fullmatch(r"0\.1\.0\.dev20231114221420\+g[0-9a-f]+\.d\d{14}", found[3])
    git("checkout", "--quiet", ".")
    git("clone", "--quiet", "--depth=1", tmp_path.as_uri(), "shallow")
    assert version_of(tmp_path / "shallow") == found[2]
    git("tag", "v0.1.0")
    found.append(version_of(tmp_path))
    assert found == sorted(found, key=Version)
    assert found[-1] == "0.1.0"


def test_a_source_distribution_keeps_its_version_without_git(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    run("tar", "-xzf", archive, cwd=tmp_path)
    assert version_of(tmp_path / archive.name.removesuffix(".tar.gz")) == version_of(ROOT)


def test_the_change_log_knows_the_version() -> None:
    (version,) = re.findall(r'^NEXT = "(.*)"', (ROOT / "scripts" / "version.py").read_text(), re.MULTILINE)
    assert re.search(
        rf"^## \[?{re.escape(version)}\b|^## \[?Unreleased", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


# --- the env file ---------------------------------------------------------------------------------------------------


def example() -> dict[str, str]:
    """The lines of the example, those commented out included."""
    found = re.findall(rf"^#?({PREFIX}\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    assert len(found) == len(dict(found)), "a setting stands there twice"
    return dict(found)


def test_the_example_has_a_line_for_every_setting_and_for_nothing_else() -> None:
    assert example().keys() == {f"{PREFIX}{name.upper()}" for name in Settings.model_fields.keys() - NO_LINE}


def test_the_example_is_valid_and_shows_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    env_file = tmp_path / "worker.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in example().items()))
    shown = parse(["--env-file", str(env_file)]).settings
    for name, field in Settings.model_fields.items():
        # None and the empty list are shown by an example, and a host's name differs.
        if name not in NO_LINE and field.default not in (None, (), PydanticUndefined):
            assert getattr(shown, name) == field.default, name


def test_the_example_as_it_is_needs_its_one_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    settings = parse(["--env-file", str(EXAMPLE)]).settings
    assert settings.model_fields_set - {"env_file"} == {"database_url"}


# --- the systemd unit -----------------------------------------------------------------------------------------------


def unit(file: Path = UNIT) -> dict[str, list[str]]:
    """The unit's settings, each with all values that it has."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in file.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, equals, value = line.partition("=")
            assert equals, line
            found[name].append(value)
    return found


def seconds(text: str) -> float:
    """A time span of systemd, in seconds."""
    number, word = re.fullmatch(r"(\d+)(s|min)?", text).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1, "s": 1, "min": 60}[word]


def verified(unit_file: Path) -> list[str]:
    """What systemd says of that file: this system's, else that of Debian's package."""
    analyze, environ = shutil.which("systemd-analyze"), dict(os.environ)
    if analyze is None:
        systemd = unpacked("systemd", libraries=True)
        (analyze,) = map(str, systemd.glob("**/bin/systemd-analyze"))
        environ |= {
            "LD_LIBRARY_PATH": libraries(systemd),
            "SYSTEMD_UNIT_PATH": ":".join(map(str, systemd.glob("**/lib/systemd/system"))),
        }
    command = [analyze, "verify", "--man=no", str(unit_file)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if unit_file.name in line]


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_systemd_understands_the_unit(tmp_path: Path, file: Path) -> None:
    copy, wrong = tmp_path / file.name, tmp_path / "wrong.service"
    command = f"ExecStart={unit(file)['ExecStart'][0]}"
    copy.write_text(file.read_text().replace(command, f"ExecStart={sys.executable}"))
    wrong.write_text(copy.read_text().replace("[Install]", "NoSuchKey=1\n\n[Install]"))
    assert verified(copy) == []
    assert any("NoSuchKey" in line for line in verified(wrong))


def test_the_unit_has_no_key_that_debian_12_does_not_know() -> None:
    # a newer systemd verifies these, too: https://github.com/systemd/systemd/blob/main/NEWS, "CHANGES WITH 254"
    assert unit().keys().isdisjoint({"RestartSteps", "RestartMaxDelaySec"})
    assert {"MemoryMax", "TasksMax"} <= unit().keys()


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_the_unit_starts_the_command_that_the_wheel_installs(installed: Path, file: Path) -> None:
    (line,) = unit(file)["ExecStart"]
    command, *words = line.split()
    assert (installed / Path(command).name).exists()
    assert words in ([], ["console"])
    steps = file.read_text().split("[Unit]")[0]
    assert f"-m venv {Path(command).parents[1]} " in steps
    (env_file,) = unit(file)["EnvironmentFile"]
    assert f" {env_file} " in steps


def test_the_unit_does_not_restart_what_a_wrong_setting_ended(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "ops-worker"), "--lease", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert unit()["RestartPreventExitStatus"] == [str(done.returncode)]
    assert unit()["Restart"] == ["always"]


def test_the_unit_sets_known_settings_and_lets_a_drain_end() -> None:
    environment = dict(entry.split("=", 1) for entry in unit()["Environment"])
    names = set(re.findall(rf"^#?Environment=({PREFIX}\w+)=", UNIT.read_text(), re.MULTILINE))
    assert names <= {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    drain = float(environment[f"{PREFIX}DRAIN_TIMEOUT"])
    assert seconds(unit()["TimeoutStopSec"][0]) > drain
    assert unit()["KillSignal"] == ["SIGTERM"]
    assert unit()["KillMode"] == ["mixed"]


def test_the_unit_lets_the_worker_write_where_artifacts_go_by_default() -> None:
    (folder,) = unit()["StateDirectory"]
    store = str(Settings.model_fields["artifact_store"].default)
    assert store.startswith(f"file:///var/lib/{folder}/")
