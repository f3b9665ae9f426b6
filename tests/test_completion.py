"""``ops-worker completion SHELL``: what real shells complete."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command import complaints, ops_worker
from tests.support.debian import libraries, unpacked
from tests.support.docker import PATIENCE
from worker.cli.commands import COMMANDS, SHELLS

pytestmark = pytest.mark.xdist_group("completion")  # one process unpacks the shells


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        done = ops_worker("completion", shell)
        assert (done.returncode, done.stderr) == (0, "")
        (folder / shell).write_text(done.stdout)
    return folder


def bash(scripts: Path, line: str) -> list[str]:
    """What bash offers at the end of that line."""
    program = """
        source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _shtab_ops_worker; printf '%s\\n' "${COMPREPLY[@]}"
    """
    words = line.split(" ")
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", scripts / "bash", *words], capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def fish(scripts: Path, line: str) -> list[str]:
    """What fish offers at the end of that line."""
    root = unpacked("fish", "fish-common", libraries=True)
    environ = {"HOME": str(scripts), "LD_LIBRARY_PATH": libraries(root), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    program = f"source {scripts / 'fish'}; complete -C '{line}'"
    done = subprocess.run(
        [root / "usr/bin/fish", "--no-config", "-c", program], env=environ, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [offer.split("\t")[0] for offer in done.stdout.splitlines()]


def zsh(scripts: Path, line: str) -> str:
    """What a line in zsh's editor becomes when Tab is pressed at its end."""
    root = unpacked("zsh", "zsh-common", libraries=True)
    modules = next(root.glob("usr/lib/*/zsh/*"))
    program = next(root.glob("**/bin/zsh"))
    result = scripts / "line"
    result.unlink(missing_ok=True)
    (scripts / "functions").mkdir(exist_ok=True)
    shutil.copy(scripts / "zsh", scripts / "functions" / "_ops-worker")
    (scripts / ".zshrc").write_text(
        f"""
        module_path=({modules})
        fpath=({scripts}/functions {root}/usr/share/zsh/functions {root}/usr/share/zsh/functions/**/*(/N))
        PS1='ready> '; setopt no_beep no_list_ambiguous; autoload -Uz compinit && compinit -u -D
        report() {{ print -r -- "$BUFFER" > {result}; exit 0 }}; zle -N report; bindkey '^X^R' report
        """
    )
    environ = {
        "HOME": str(scripts), "ZDOTDIR": str(scripts), "LD_LIBRARY_PATH": libraries(root), "TERM": "xterm",
        "PATH": os.environ["PATH"], "LANG": "C.UTF-8",
    }  # fmt: skip
    ours, its = pty.openpty()
    with subprocess.Popen(
        [program, "-d", "-i"], env=environ, stdin=its, stdout=its, stderr=its, start_new_session=True
    ) as process:
        os.close(its)
        until_shown(ours, b"ready> ")
        os.write(ours, f"{line}\t\x18\x12".encode())
        deadline = time.monotonic() + PATIENCE
        while not (result.exists() and result.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.close(ours)
        process.kill()
    return result.read_text().rstrip("\n")


def until_shown(terminal: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 4096)


OFFERS = [
    ("ops-worker ", {command.words[0] for command in COMMANDS}, set()),
    ("ops-worker runs ", {"list", "show", "logs", "wait", "enqueue", "cancel", "retry"}, {"migrate", "runs"}),
    ("ops-worker runs s", {"show"}, {"list"}),
    ("ops-worker db ", {"migrate", "status", "verify", "rollback", "create-worker", "create-console"}, {"list"}),
    ("ops-worker runs logs --", {"--follow", "--level", "--since", "--json", "--database-url"}, {"--lease", "--key"}),
    ("ops-worker runs list --status ", {"queued", "running", "failed"}, {"list"}),
    ("ops-worker runs list --status fa", {"failed"}, {"queued"}),
    ("ops-worker completion ", set(SHELLS), set()),
    ("ops-worker projects ", {"sync"}, {"list"}),
    ("ops-worker projects --", {"--limit", "--json"}, {"--dry-run"}),
    ("ops-worker members ", {"add", "remove"}, {"set"}),
    ("ops-worker --log-format ", {"auto", "console", "json"}, set()),
]


@pytest.mark.parametrize(("line", "offered", "others"), OFFERS)
def test_bash_completes(scripts: Path, line: str, offered: set[str], others: set[str]) -> None:
    offers = set(bash(scripts, line))
    assert (offered - offers, others & offers) == (set(), set())


@pytest.mark.parametrize(("line", "offered", "others"), OFFERS)
def test_fish_completes(scripts: Path, line: str, offered: set[str], others: set[str]) -> None:
    offers = set(fish(scripts, line))
    assert (offered - offers, others & offers) == (set(), set())


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("ops-worker run", "ops-worker runs "), ("ops-worker runs sh", "ops-worker runs show "),
        ("ops-worker db create-w", "ops-worker db create-worker "),
        ("ops-worker runs logs --fol", "ops-worker runs logs --follow "),
        ("ops-worker runs list --status fa", "ops-worker runs list --status failed "),
        ("ops-worker runs list --lea", "ops-worker runs list --lea"),
    ],
)  # fmt: skip
def test_zsh_completes(scripts: Path, line: str, becomes: str) -> None:
    assert zsh(scripts, line) == becomes


def test_another_shell_is_refused() -> None:
    done = ops_worker("completion", "csh")
    assert done.returncode == 2
    assert complaints(done) == ["SHELL: expected one of bash, zsh, fish"]


def test_small_commands_import_neither_a_driver_nor_an_engine() -> None:
    """So ``--version``, the help and errors of usage stay quick."""
    program = """
import sys
from worker.cli.parser import parse
parse(["runs", "list"], {})
heavy = {"asyncpg", "docker", "obstore", "shtab", "worker.daemon", "worker.cli.startup", "worker.cli.runs"}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
