"""Settings: where they come from, which wins, and what is said of a bad one."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import hypothesis
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.commands import COMMANDS as ALL
from worker.cli.parser import parse
from worker.cli.settings import FLAG_ONLY, Settings, spelling
from worker.errors import UsageError

COMMANDS = " | ".join(command.usage for command in ALL)
NAMES = [name for name in Settings.model_fields if name not in FLAG_ONLY]


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    return parse(argv, environ).settings


def variable(name: str) -> str:
    return f"OPS_WORKER_{name.upper()}"


def problems(*argv: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        load(argv, environ)
    return caught.value.problems


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / "worker.env"


def test_nothing_set_is_the_defaults() -> None:
    settings = load([], {})
    assert settings == Settings()
    assert settings.worker_id == socket.gethostname()
    assert (settings.concurrency, settings.lease, settings.poll_interval, settings.stop_grace) == (2, 300, 5.0, 10.0)
    assert (settings.database_url, settings.docker_host, settings.drain_timeout, settings.metrics_address) == (
        None,
    ) * 4
    assert (settings.allowed_images, settings.allowed_networks, settings.labels) == (("*",), ("bridge", "none"), ())
    assert settings.artifact_store == "file:///var/lib/ops-worker/artifacts"
    assert not settings.until_idle
    assert parse([], {}).command.name == ""


def test_the_process_s_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_WORKER_CONCURRENCY", "9")
    assert load([]).concurrency == 9


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("worker_id", "build-1", "build-1"),
        ("concurrency", "4", 4),
        ("labels", "arm64, big,", ("arm64", "big")),
        ("lease", "60", 60),
        ("poll_interval", "0.5", 0.5),
        ("drain_timeout", "120", 120.0),
        ("docker_host", "tcp://10.0.0.1:2376", "tcp://10.0.0.1:2376"),
        ("allowed_images", "odoo:*,registry.example/[ab]*", ("odoo:*", "registry.example/[ab]*")),
        ("allowed_networks", "none", ("none",)),
        ("read_only_root", "true", True),
        ("secrets_dir", "/run/secrets", Path("/run/secrets")),
        ("secrets_as_env", "true", True),
        ("stop_grace", "1", 1.0),
        ("pull_timeout", "90", 90.0),
        ("default_timeout", "60", 60.0),
        ("max_timeout", "7200", 7200.0),
        ("default_cpus", "1.5", 1.5),
        ("max_cpus", "8", 8.0),
        ("default_memory", "512m", 2**29),
        ("max_memory", "8 GiB", 2**33),
        ("default_pids", "64", 64),
        ("max_pids", "2048", 2048),
        ("default_nofile", "1024", 1024),
        ("max_nofile", "9999", 9999),
        ("default_output", "1g", 2**30),
        ("max_output", "4g", 2**32),
        ("default_disk", "5g", 5 * 2**30),
        ("max_disk", "50g", 50 * 2**30),
        ("max_log", "8m", 2**23),
        ("min_free_disk", "5g", 5 * 2**30),
        ("containerd_root", "/data/containerd", Path("/data/containerd")),
        ("artifact_store", "s3://bucket/prefix", "s3://bucket/prefix"),
        ("keep_logs", "90", 90),
        ("keep_events", "365", 365),
        ("log_level", "debug", "debug"),
        ("log_format", "json", "json"),
        ("metrics_address", "127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("metrics_address", ":9464", ("0.0.0.0", 9464)),  # noqa: S104 - only read
        ("metrics_address", "[::1]:9464", ("::1", 9464)),
        ("until_idle", "true", True),
    ],
)
def test_each_setting_is_a_flag_a_variable_and_a_line_of_a_file(
    name: str, text: str, value: object, env_file: Path
) -> None:
    dashed = f"--{name.replace('_', '-')}"
    env_file.write_text(f"# a comment\nAWS_REGION=eu\n{variable(name)}={text}\n", encoding="utf-8")
    arguments = [dashed] if value is True else [dashed, text]
    words = ["prune"] if name.startswith("keep_") else []
    for settings in (
        load([*words, *arguments], {}),
        load([], {variable(name): text}),
        load(["--env-file", str(env_file)], {}),
        load([], {"OPS_WORKER_ENV_FILE": str(env_file)}),
    ):
        assert getattr(settings, name) == value


def test_every_setting_is_tried_above() -> None:
    [mark] = test_each_setting_is_a_flag_a_variable_and_a_line_of_a_file.pytestmark  # type: ignore[attr-defined]
    assert {name for name, *_ in mark.args[1]} == {*NAMES} - {"database_url", "env_file"}


def test_a_flag_wins_over_the_environment_and_that_over_the_file(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_CONCURRENCY=7\nOPS_WORKER_LEASE=70\nOPS_WORKER_STOP_GRACE=7\n", encoding="utf-8")
    environ = {"OPS_WORKER_ENV_FILE": str(env_file), "OPS_WORKER_LEASE": "80", "OPS_WORKER_STOP_GRACE": "8"}
    settings = load(["--stop-grace", "9"], environ)
    assert (settings.concurrency, settings.lease, settings.stop_grace) == (7, 80, 9.0)


def test_the_flag_for_the_file_wins_over_its_variable(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_CONCURRENCY=7\n", encoding="utf-8")
    assert load([f"--env-file={env_file}"], {"OPS_WORKER_ENV_FILE": "/nowhere"}).concurrency == 7


def test_an_empty_variable_is_not_set(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_CONCURRENCY=7\n", encoding="utf-8")
    settings = load(["--env-file", str(env_file)], {"OPS_WORKER_CONCURRENCY": "", "OPS_WORKER_DRAIN_TIMEOUT": ""})
    assert (settings.concurrency, settings.drain_timeout) == (7, None)


def test_a_switch_is_turned_off_by_its_flag() -> None:
    assert load(["--no-until-idle"], {"OPS_WORKER_UNTIL_IDLE": "1"}).until_idle is False


def test_nothing_is_expanded_in_the_file(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_DATABASE_URL='postgresql://u:${HOME}$x@h/d'\n", encoding="utf-8")
    url = load(["--env-file", str(env_file)], {}).database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql://u:${HOME}$x@h/d"


@pytest.mark.parametrize(
    "argv",
    [
        "--env-file /dev/null --yes db rollback 20260213000100",
        "db rollback 20260213000100 --yes --env-file /dev/null",
        "db --env-file /dev/null rollback 20260213000100 --yes",
        "db rollback --env-file=/dev/null 20260213000100 --yes",
    ],
)
def test_flags_stand_anywhere_around_a_command(argv: str) -> None:
    call = parse(argv.split(), {})
    assert (call.command.name, call.arguments) == ("db rollback", ("20260213000100",))
    assert call.settings.yes
    assert call.settings.env_file == Path("/dev/null")


@pytest.mark.parametrize(
    ("argv", "reader"),
    [("db rollback --lease 60", "db rollback"), ("prune --yes", "prune"), ("--dry-run", "the worker")],
)
def test_a_flag_that_the_command_does_not_read_is_refused_and_its_variable_is_not(argv: str, reader: str) -> None:
    [line] = problems(*argv.split())
    assert f": {reader} does not read this setting; see ops-worker" in line
    assert load(["db", "status"], {"OPS_WORKER_LEASE": "60"}).lease == 60


def test_the_database_may_have_the_name_that_other_programs_read(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_DATABASE_URL=postgresql://file\n", encoding="utf-8")
    general = {"DATABASE_URL": "postgresql://general", "OPS_WORKER_DATABASE_URL": ""}

    def found(*argv: str, **environ: str) -> str:
        url = load(argv, general | environ).database_url
        assert url is not None
        return url.get_secret_value()

    assert found() == "postgresql://general"
    assert found("--env-file", str(env_file)) == "postgresql://file"
    assert found(OPS_WORKER_DATABASE_URL="postgresql://ours") == "postgresql://ours"
    assert problems(DATABASE_URL="mysql://h") == ("DATABASE_URL: expected postgresql://user:password@host/database",)


def test_the_version_is_a_flag_alone() -> None:
    assert load(["--version"], {}).version


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("concurrency", "many", "expected a whole number of at least 1 and at most 500, got 'many'"),
        ("concurrency", "0", "expected a whole number of at least 1 and at most 500, got '0'"),
        ("concurrency", "1.5", "expected a whole number of at least 1 and at most 500, got '1.5'"),
        ("lease", "1", "expected a whole number of at least 15 and at most 3600, got '1'"),
        ("poll_interval", "0", "expected a number above 0, got '0'"),
        ("poll_interval", "inf", "expected a number above 0, got 'inf'"),
        ("drain_timeout", "soon", "expected a number above 0, got 'soon'"),
        (
            "docker_host",
            "ssh://build",
            "expected unix:///path or tcp://host:port; for ssh, forward the socket (ssh -L), got 'ssh://build'",
        ),
        (
            "default_memory",
            "lots",
            "expected bytes or a size such as 512m or 2g, above 0 and not above 1024t, got 'lots'",
        ),
        ("max_memory", "0", "expected bytes or a size such as 512m or 2g, above 0 and not above 1024t, got '0'"),
        ("max_pids", "-5", "expected a whole number above 0, got '-5'"),
        ("log_level", "loud", "expected one of 'debug', 'info', 'warning' or 'error', got 'loud'"),
        ("metrics_address", "9464", "expected host:port, such as 127.0.0.1:9464, got '9464'"),
        ("metrics_address", "localhost:99999", "expected host:port, such as 127.0.0.1:9464, got 'localhost:99999'"),
        ("database_url", "mysql://u:hunter22@h/db", "expected postgresql://user:password@host/database"),
    ],
)
def test_a_bad_value_is_one_line_that_names_both_its_names(name: str, text: str, message: str, env_file: Path) -> None:
    env_file.write_text(f'{variable(name)}="{text}"\n', encoding="utf-8")
    line = f"--{name.replace('_', '-')} ({variable(name)}): {message}"
    assert problems(f"--{name.replace('_', '-')}={text}") == (line,)
    assert problems(**{variable(name): text}) == (line,)
    assert problems("--env-file", str(env_file)) == (line,)


def test_a_switch_is_true_or_false() -> None:
    message = "--until-idle (OPS_WORKER_UNTIL_IDLE): expected true or false, got 'maybe'"
    assert problems(OPS_WORKER_UNTIL_IDLE="maybe") == (message,)


def test_a_name_of_no_letters_is_refused() -> None:
    assert problems("--worker-id=") == ("--worker-id (OPS_WORKER_WORKER_ID): expected at least 1 character(s), got ''",)


def test_all_problems_are_told_at_once(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_LABELZ=a\nOPS_WORKER_LEASE=1\n", encoding="utf-8")
    assert problems("--env-file", str(env_file), "--concurency", "3", "--max-pids", "x", OPS_WORKER_CONCURENCY="2") == (
        f"OPS_WORKER_LABELZ in {env_file}: there is no such setting; did you mean OPS_WORKER_LABELS?",
        "OPS_WORKER_CONCURENCY in the environment: there is no such setting; did you mean OPS_WORKER_CONCURRENCY?",
        "unknown setting --concurency; did you mean --concurrency?",
        "--lease (OPS_WORKER_LEASE): expected a whole number of at least 15 and at most 3600, got '1'",
        "--max-pids (OPS_WORKER_MAX_PIDS): expected a whole number above 0, got 'x'",
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--conc", "3"], "unknown setting --conc; did you mean --concurrency?"),
        (["-x"], "unknown setting -x; see ops-worker --help"),
        (["--concurrency"], "--concurrency: expected one argument"),
        (["migrate"], f"unknown command; expected one of: {COMMANDS}"),
        (["db"], f"unknown command; expected one of: {COMMANDS}"),
        (["prune", "all"], "too many words after prune; usage: ops-worker prune"),
        (["db", "rollback", "1", "2"], "too many words after db rollback; usage: ops-worker db rollback [VERSION]"),
        (["db", "create-worker"], "too few words after db create-worker; usage: ops-worker db create-worker NAME [-]"),
    ],
)
def test_bad_usage(argv: list[str], message: str) -> None:
    assert problems(*argv) == (message,)


@pytest.mark.parametrize(
    ("name", "default", "most", "message"),
    [
        ("memory", "4g", "1536m", "4g is more than --max-memory, 1536m"),
        ("cpus", "2.5", "2", "2.5 is more than --max-cpus, 2"),
        ("pids", "10", "9", "10 is more than --max-pids, 9"),
        ("nofile", "10", "9", "10 is more than --max-nofile, 9"),
        ("timeout", "60", "59", "60 is more than --max-timeout, 59"),
    ],
)
def test_a_default_above_the_maximum_is_refused(name: str, default: str, most: str, message: str) -> None:
    line = f"--default-{name} (OPS_WORKER_DEFAULT_{name.upper()}): {message}"
    assert problems(f"--default-{name}", default, f"--max-{name}", most) == (line,)
    load([f"--max-{name}", most], {})


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_env_file_that_cannot_be_read(content: bytes | None, env_file: Path) -> None:
    if content is not None:
        env_file.write_bytes(content)
    [line] = problems("--env-file", str(env_file))
    why = "No such file or directory" if content is None else "it is not UTF-8 text"
    assert line == f"--env-file (OPS_WORKER_ENV_FILE): cannot read {env_file}: {why}"


URL = "postgresql://worker:hunter22@db.example/ops"


@pytest.mark.parametrize(
    "argv",
    [
        ["--database-url", URL, "--lease", "1"],
        ["--database-url", URL.replace("postgresql", "postgre")],
        [f"--database-urll={URL}"],
        ["--database-urll", URL],
        [URL],
        [f"-d{URL}"],
    ],
)
def test_no_problem_quotes_a_secret(argv: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(argv, {"OPS_WORKER_DATABASE_URL": URL})
    assert "hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_settings_show_no_secret_and_do_not_change() -> None:
    settings = load(["--database-url", URL], {})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == URL
    assert "hunter22" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(pydantic.ValidationError):
        settings.concurrency = 5  # type: ignore[misc]


def shown_help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as done:
        load(argv, {"OPS_WORKER_DATABASE_URL": URL})
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert not re.search(r"hunter22|None|SecretStr|Pydantic|==", shown)
    return shown


def flags_of(shown: str) -> list[str]:
    return re.findall(r"^  --([a-z-]+)", shown, re.MULTILINE)


def test_the_help_shows_every_setting_on_a_line_of_its_own_with_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = shown_help(capsys, "--help")
    assert sorted(flags_of(shown)) == sorted(name.replace("_", "-") for name in Settings.model_fields)
    for default in ("(default: 2g)", "(default: 5)", "(default: bridge,none)", "(default: the host's name)"):
        assert default in shown
    for heading in ("commands:", "the queue:", "containers:", "artifacts:", "logs and metrics:"):
        assert f"\n{heading}\n" in shown
    for command in COMMANDS.split(" | "):
        assert f"\n  {command} " in shown
    assert "--log-level is OPS_WORKER_LOG_LEVEL" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert not re.search(r"^ {20}", shown, re.MULTILINE), "a line that was broken"


@pytest.mark.parametrize(
    ("words", "usage", "flags"),
    [
        ("db migrate", "db migrate [SETTING ...]", "env-file version database-url"),
        ("db rollback", "db rollback [VERSION] [SETTING ...]", "env-file version database-url yes"),
        ("db create-worker x", "db create-worker NAME [-] [SETTING ...]", "env-file version database-url"),
        (
            "prune",
            "prune [SETTING ...]",
            "env-file version database-url worker-id artifact-store keep-logs keep-events dry-run log-level log-format",
        ),
    ],
)
def test_the_help_of_a_command_shows_its_arguments_and_what_it_reads(
    capsys: pytest.CaptureFixture[str], words: str, usage: str, flags: str
) -> None:
    shown = shown_help(capsys, *words.split(), "-h")
    assert shown.startswith(f"usage: ops-worker {usage}\n")
    assert flags_of(shown) == flags.split()


def test_a_setting_is_named_by_both_its_names() -> None:
    assert spelling("database_url") == "--database-url (OPS_WORKER_DATABASE_URL)"
    assert spelling("version") == "--version"


PRINTABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
URLS = st.sampled_from(
    [URL, f"{URL}?sslmode=maybe", f"{URL},other:0/ops", URL.replace("postgresql", "mysql"), f"x,{URL}"]
)
VALUES = (
    URLS | PRINTABLE | st.sampled_from(["0", "-1", "nan", "1e999", "9" * 5000, "true", "[", "{}", "file:///", "a:1"])
)
FLAGS = st.sampled_from([f"--{name.replace('_', '-')}" for name in Settings.model_fields])
WORDS = (
    FLAGS
    | VALUES
    | st.builds("{}={}".format, FLAGS, VALUES)
    | st.sampled_from(["db", "prune", "--", "-x", "-", "status"])
)
VARIABLES = st.sampled_from(list(map(variable, NAMES))) | PRINTABLE.map("OPS_WORKER_".__add__)
LINES = st.builds("{}{}{}".format, VARIABLES, st.sampled_from(["=", ":", ": ", " = ", " ", "='", '="', ""]), VALUES)
FILES = st.binary(max_size=60) | st.lists(LINES, max_size=4).map(lambda lines: "\n".join(lines).encode())
NAMED = re.compile(
    r"(-\S+( \(OPS_WORKER_[A-Z_]+\))?|OPS_WORKER_.*? in .*): |unknown (setting -|command; )|too many words after ",
    re.DOTALL,
)
"""How a line begins: with the setting, the variable, or the word of the command line, that it is about."""


@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 4)  # each makes a parser
@given(
    argv=st.lists(WORDS.filter(lambda word: not word.startswith(("-h", "--h"))), max_size=4),
    environ=st.dictionaries(VARIABLES, VALUES, max_size=4),
    content=FILES,
)
def test_whatever_is_set_is_settings_or_a_line_for_each_problem_without_the_password(
    tmp_path_factory: pytest.TempPathFactory, argv: list[str], environ: dict[str, str], content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "worker.env"
    file.write_bytes(content)
    try:
        load(argv, {"OPS_WORKER_ENV_FILE": str(file), **environ})
    except UsageError as error:
        told = error.problems
    else:
        return
    assert told
    assert all(NAMED.match(line) for line in told), told
    assert "hunter22" not in "".join(told)


def test_the_worker_s_own_file_must_not_lie_among_the_secrets_for_runs(tmp_path: Path) -> None:
    file = tmp_path / "acme" / "worker.env"
    file.parent.mkdir()
    file.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="where every workflow could name it as a secret"):
        load(["--env-file", str(file), "--secrets-dir", f"{tmp_path}/acme/.."], {})
    load(["--env-file", str(file), "--secrets-dir", str(tmp_path / "other")], {})
