"""What leaves the checkout: the wheel, and the files under ``deploy/`` that speak of the worker's settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from worker.settings import PREFIX, Settings, load

pytestmark = pytest.mark.xdist_group("packaging")  # one process builds the wheel

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "deploy" / "ops-worker.service"
EXAMPLE = ROOT / "deploy" / "worker.env.example"
FLAGS_ONLY = {"verb", "version", "dry_run", "env_file"}
SINCE_254 = {"RestartSteps", "RestartMaxDelaySec"}
"""What the unit says to newer versions of systemd; older ones pass it over."""


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
    modules = {f"worker/{path.name}" for path in (ROOT / "worker").glob("*.py")}
    files = [*(ROOT / "sql").glob("catalog.*"), *(ROOT / "sql" / "migrations").iterdir()]
    files += (ROOT / "sql" / "rollback").iterdir()
    sql = {f"worker/{path.relative_to(ROOT)}" for path in files}
    assert {"worker/sql/catalog.sql", "worker/sql/catalog.txt"} <= sql
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


def test_the_installed_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(installed / "ops-worker", "--version", cwd=tmp_path).stdout == f"ops-worker {version}\n"


def test_the_change_log_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
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
    assert example().keys() == {f"{PREFIX}{name.upper()}" for name in Settings.model_fields.keys() - FLAGS_ONLY}


def test_the_example_is_valid_and_shows_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    env_file = tmp_path / "worker.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in example().items()))
    shown = load(["--env-file", str(env_file)])
    for name, field in Settings.model_fields.items():
        # None and the empty list are shown by an example, and a host's name differs.
        if name not in FLAGS_ONLY and field.default not in (None, (), PydanticUndefined):
            assert getattr(shown, name) == field.default, name


def test_the_example_as_it_is_needs_its_one_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    settings = load(["--env-file", str(EXAMPLE)])
    assert settings.model_fields_set - {"env_file"} == {"database_url"}


# --- the systemd unit -----------------------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """The unit's settings, each with all values that it has."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, equals, value = line.partition("=")
            assert equals, line
            found[name].append(value)
    return found


def seconds(text: str) -> float:
    """A time span of systemd, in seconds."""
    number, word = re.fullmatch(r"(\d+)(s|min)?", text).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1, "s": 1, "min": 60}[word]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not here")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(f"ExecStart={unit()['ExecStart'][0]}", f"ExecStart={sys.executable}"))
    done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(copy) in line]
    assert [line for line in complaints if not any(f"'{name}'" in line for name in SINCE_254)] == []


def test_the_unit_starts_the_command_that_the_wheel_installs(installed: Path) -> None:
    (command,) = unit()["ExecStart"]
    assert (installed / Path(command).name).exists()
    steps = UNIT.read_text().split("[Unit]")[0]
    assert f"-m venv {Path(command).parents[1]} " in steps
    (env_file,) = unit()["EnvironmentFile"]
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
