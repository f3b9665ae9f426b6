"""The command line, the environment and the env file: which value wins, the message for a mistake, the help."""

from __future__ import annotations

import re
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cli.lines import load, problems
from worker.cli.commands import COMMANDS
from worker.cli.parser import parse
from worker.cli.settings import FLAG_ONLY, Settings, flag, variable
from worker.errors import UsageError

USAGES = " | ".join(command.usage for command in COMMANDS)
DB_USAGES = " | ".join(command.usage for command in COMMANDS if command.name.startswith("db "))
URL = "postgresql://worker:hunter22@db.example/ops"


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / "worker.env"


def test_no_arguments_are_the_work_and_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_WORKER_CONCURRENCY", "9")
    assert load([]).concurrency == 9
    assert (parse([]).command.name, parse([]).arguments) == ("", ())


def test_nearest_value_wins(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_CONCURRENCY=7\nOPS_WORKER_LEASE=70\nOPS_WORKER_STOP_GRACE=7\n", encoding="utf-8")
    environ = {"OPS_WORKER_ENV_FILE": str(env_file), "OPS_WORKER_LEASE": "80", "OPS_WORKER_STOP_GRACE": "8"}
    settings = load(["--stop-grace", "9"], environ)
    assert (settings.concurrency, settings.lease, settings.stop_grace) == (7, 80, 9.0)
    environ = {"OPS_WORKER_ENV_FILE": "/nowhere", "OPS_WORKER_CONCURRENCY": "", "OPS_WORKER_DRAIN_TIMEOUT": ""}
    settings = load([f"--env-file={env_file}"], environ)
    assert (settings.concurrency, settings.drain_timeout) == (7, None)  # an empty variable is not set


def test_switch_is_turned_off_by_its_flag() -> None:
    assert load(["--no-until-idle"], {"OPS_WORKER_UNTIL_IDLE": "1"}).until_idle is False


def test_nothing_is_expanded_in_the_file(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_DATABASE_URL='postgresql://u:${HOME}$x@h/d'\n", encoding="utf-8")
    assert load(["--env-file", str(env_file)], {}).dsn == "postgresql://u:${HOME}$x@h/d"


def test_database_url_of_other_programs_counts_last(env_file: Path) -> None:
    env_file.write_text("OPS_WORKER_DATABASE_URL=postgresql://file\n", encoding="utf-8")
    general = {"DATABASE_URL": "postgresql://general", "OPS_WORKER_DATABASE_URL": ""}
    assert load([], general).dsn == "postgresql://general"
    assert load(["--env-file", str(env_file)], general).dsn == "postgresql://file"
    assert load([], general | {"OPS_WORKER_DATABASE_URL": "postgresql://ours"}).dsn == "postgresql://ours"
    assert problems(DATABASE_URL="mysql://h") == ("DATABASE_URL: expected postgresql://user:password@host/database",)


def test_version_is_a_flag_alone() -> None:
    assert load(["--version"], {}).version
    assert problems(OPS_WORKER_VERSION="true")[0].startswith("OPS_WORKER_VERSION in the environment: there is no such")


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
def test_flag_that_the_command_does_not_read_is_refused_and_its_variable_is_not(argv: str, reader: str) -> None:
    [line] = problems(*argv.split())
    assert f": {reader} does not read this setting; see ops-worker" in line
    assert load(["db", "status"], {"OPS_WORKER_LEASE": "60"}).lease == 60


def test_all_problems_are_reported_at_once(env_file: Path) -> None:
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
        (["migrate"], f"unknown command; expected one of: {USAGES}"),
        (["db"], f"unknown command; expected one of: {DB_USAGES}"),
        (["db", "migrat"], f"unknown command; expected one of: {DB_USAGES}"),
        (["runs", "show"], "too few words after runs show; usage: ops-worker runs show RUN"),
        (["runs", "show", "a#1", "--limitt", "3"], "unknown setting --limitt; see ops-worker --help"),
        (["runs", "list", "--limitt", "3"], "unknown setting --limitt; did you mean --limit?"),
        (
            ["db", "status", "--limit", "3"],
            "--limit: db status does not read this option; see ops-worker db status --help",
        ),
        (
            ["runs", "list", "--lease", "60"],
            "--lease: runs list does not read this setting; see ops-worker runs list --help",
        ),
        (["prune", "all"], "too many words after prune; usage: ops-worker prune"),
        (["db", "rollback", "1", "2"], "too many words after db rollback; usage: ops-worker db rollback [VERSION]"),
        (["db", "create-worker"], "too few words after db create-worker; usage: ops-worker db create-worker NAME [-]"),
    ],
)
def test_bad_usage(argv: list[str], message: str) -> None:
    assert problems(*argv) == (message,)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_unreadable_env_file_is_refused(content: bytes | None, env_file: Path) -> None:
    if content is not None:
        env_file.write_bytes(content)
    [line] = problems("--env-file", str(env_file))
    why = "No such file or directory" if content is None else "it is not UTF-8 text"
    assert line == f"--env-file (OPS_WORKER_ENV_FILE): cannot read {env_file}: {why}"


@pytest.mark.parametrize(
    "argv",
    [
        ["--database-url", URL, "--lease", "1"], ["--database-url", URL.replace("postgresql", "postgre")],
        [f"--database-urll={URL}"], ["--database-urll", URL], [URL], [f"-d{URL}"],
    ],
)  # fmt: skip
def test_no_line_quotes_a_secret(argv: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(argv, {"OPS_WORKER_DATABASE_URL": URL})
    assert "hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None


def shown_help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as done:
        load(argv, {"OPS_WORKER_DATABASE_URL": URL})
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert not re.search(r"hunter22|None|SecretStr|Pydantic|==", shown)
    return shown


def flags_of(shown: str) -> list[str]:
    return re.findall(r"^  --([a-z-]+)", shown, re.MULTILINE)


def test_help_has_a_line_for_every_setting_with_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = shown_help(capsys, "--help")
    assert sorted(flags_of(shown)) == sorted(flag(name)[2:] for name in Settings.model_fields)
    for default in ("(default: 2g)", "(default: 5)", "(default: bridge,none,project)", "(default: the host's name)"):
        assert default in shown
    for heading in ("commands:", "the queue:", "containers:", "artifacts:", "logs and metrics:"):
        assert f"\n{heading}\n" in shown
    for command in USAGES.split(" | "):
        assert f"\n  {command} " in shown
    assert "--log-level is OPS_WORKER_LOG_LEVEL" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert not re.search(r"^ {20}", shown, re.MULTILINE), "a line that was broken"


@pytest.mark.parametrize(
    ("words", "usage", "flags"),
    [
        ("db migrate", "db migrate [SETTING ...]", "json env-file version database-url"),
        ("db rollback", "db rollback [VERSION] [SETTING ...]", "json env-file version database-url yes"),
        ("db create-worker x", "db create-worker NAME [-] [SETTING ...]", "json env-file version database-url"),
        (
            "prune",
            "prune [SETTING ...]",
            (
                "json env-file version database-url worker-id docker-host artifact-store keep-logs"
                " keep-events remove-volumes dry-run log-level log-format"
            ),
        ),
    ],
)
def test_help_of_a_command_shows_its_arguments_and_settings(
    capsys: pytest.CaptureFixture[str], words: str, usage: str, flags: str
) -> None:
    shown = shown_help(capsys, *words.split(), "-h")
    assert shown.startswith(f"usage: ops-worker {usage}\n")
    assert flags_of(shown) == flags.split()


PRINTABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
URLS = st.sampled_from(
    [URL, f"{URL}?sslmode=maybe", f"{URL},other:0/ops", URL.replace("postgresql", "mysql"), f"x,{URL}"]
)
ODD = st.sampled_from(["0", "-1", "nan", "1e999", "9" * 5000, "true", "[", "{}", "file:///", "a:1"])
VALUES = URLS | PRINTABLE | ODD
FLAGS = st.sampled_from([flag(name) for name in Settings.model_fields])
PLAIN = st.sampled_from(["db", "prune", "--", "-x", "-", "status"])
WORDS = FLAGS | VALUES | st.builds("{}={}".format, FLAGS, VALUES) | PLAIN
OURS = [variable(name) for name in Settings.model_fields.keys() - FLAG_ONLY]
VARIABLES = st.sampled_from(sorted(OURS)) | PRINTABLE.map("OPS_WORKER_".__add__)
LINES = st.builds("{}{}{}".format, VARIABLES, st.sampled_from(["=", ":", ": ", " = ", " ", "='", '="', ""]), VALUES)
FILES = st.binary(max_size=60) | st.lists(LINES, max_size=4).map(lambda lines: "\n".join(lines).encode())
NAMED = re.compile(
    r"(-\S+( \(OPS_WORKER_[A-Z_]+\))?|OPS_WORKER_.*? in .*): |unknown (setting -|command; )|too many words after ",
    re.DOTALL,
)
"""A message begins with its setting, its variable, or its word of the command line."""


@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 4)  # each makes a parser
@given(
    argv=st.lists(WORDS.filter(lambda word: not word.startswith(("-h", "--h"))), max_size=4),
    environ=st.dictionaries(VARIABLES, VALUES, max_size=4),
    content=FILES,
)
def test_every_input_is_settings_or_lines_without_the_password(
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
