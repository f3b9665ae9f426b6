"""The commands of ``ops-worker``: what each is called, which settings and options it reads, and where its code is.

The code of a command is imported when it runs, so ``--version`` and the help need no database driver and no engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

from worker.cli.settings import FLAG_ONLY, Settings


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, its arguments with their meaning, what it does, and the settings that it reads."""

    name: str
    arguments: Mapping[str, str]
    does: str
    reads: frozenset[str]
    code: str
    """The module below ``worker.cli``, or its full name, and the function in it: ``runs:show``.

    The function takes the invocation and returns the exit code. No error quotes an argument that was not recognised,
    because the database's URL or a password may stand in its place.
    """
    options: tuple[str, ...] = ()
    """Names in ``worker.cli.options``."""
    notes: str = ""
    """Printed at the end of the help."""

    @property
    def words(self) -> tuple[str, ...]:
        """The name, word by word."""
        return tuple(self.name.split())

    @property
    def usage(self) -> str:
        """The name and the arguments; an optional argument stands in brackets."""
        return " ".join((self.name, *self.arguments))

    async def run(self, call: Invocation) -> int:
        """Imports the code and runs it; returns the exit code."""
        module, _, function = self.code.partition(":")
        found = getattr(import_module(module if "." in module else f"worker.cli.{module}"), function)
        return await cast("Callable[[Invocation], Awaitable[int]]", found)(call)


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a command line asks for. ``options`` has every option of the command, also those that were not given."""

    command: Command
    arguments: tuple[str, ...]
    settings: Settings
    options: Mapping[str, Any] = field(default_factory=dict)


_DATABASE = frozenset({"env_file", "version", "database_url"})
_PRUNE = _DATABASE | {
    "worker_id", "docker_host", "artifact_store", "keep_logs", "keep_events", "remove_volumes", "dry_run", "log_level",
    "log_format",
}  # fmt: skip
_DOCTOR = _DATABASE | {"docker_host", "artifact_store", "min_free_disk", "containerd_root"}
_SIGN_IN = {
    "listen", "public_url", "jwt_secret", "jwks", "jwt_audience", "trusted_proxies", "user_header", "users_file",
}  # fmt: skip
_CONSOLE = _DATABASE | _SIGN_IN | {"log_level", "log_format"}
_WORK = frozenset(Settings.model_fields) - {"keep_logs", "keep_events", *_SIGN_IN, *FLAG_ONLY}

SHELLS = ("bash", "zsh", "fish")
RUN = "RUN"
_RUN = {RUN: "its id, PROJECT#NUMBER, or PROJECT/WORKFLOW for the newest run of a workflow"}

_PROJECT = {"[PROJECT]": "its slug (default: the queue of all projects)"}
_ID = "the id of a user (a UUID); for operators, where the database has auth.users, also an email"
_ONE_PROJECT = {"[PROJECT]": "its slug (default: every project that you may see)"}

EXIT_CODES = {
    0: "done; the run succeeded",
    1: "the run failed; an error that has no code of its own",
    2: "a word, a flag or a setting is wrong; the database refuses the login",
    3: "the run was canceled",
    4: "the time limit of --timeout has passed; the run continues",
    5: "there is no such run, workflow or project, or this role may not see it",
    6: "the database refused",
    7: "the database cannot be reached",
}
"""Of all commands but ``db`` and ``prune``; the same as those of ``scripts/odooops/env_wait_ready.sh``."""

_OUTCOME = "Exit codes: 0 the run succeeded, 1 it failed, 2 wrong usage, 3 it was canceled, "
_REFUSALS = "5 there is no such run, 6 the database refused, 7 it cannot be reached."


def _person(
    name: str, does: str, code: str, arguments: Mapping[str, str] | None = None, *options: str, notes: str = ""
) -> Command:
    """A command for a person who operates or uses the control plane: it needs the database's URL only."""
    return Command(name, arguments or {}, does, _DATABASE, code, (*options, "json"), notes)


WORK = Command("", {}, str(Settings.__doc__), _WORK, "startup:work")
"""Without a command ``ops-worker`` executes runs."""

COMMANDS = (
    _person("runs list", "list runs, the newest first", "runs:listed", None, "project", "workflow", "status", "limit"),
    _person("runs show", "show a run, and why it failed", "runs:show", _RUN),
    _person(
        "runs logs", "print the log of a run, or follow it", "follow:logs", _RUN,
        "follow", "level", "since", "grep", "limit",
        notes=f"With --follow: {_OUTCOME}{_REFUSALS}",
    ),
    _person(
        "runs wait", "wait until a run has ended", "follow:wait", _RUN, "timeout",
        notes=f"{_OUTCOME}4 the time limit passed, {_REFUSALS}",
    ),
    _person(
        "runs enqueue", "queue a run of a workflow", "actions:enqueue",
        {"WORKFLOW": "PROJECT/WORKFLOW, or PROJECT/TYPE/WORKFLOW, or its id"},
        "ref", "commit", "arg", "env", "metadata", "key", "at",
    ),
    _person("runs cancel", "cancel a run, or ask its worker to stop it", "actions:cancel", _RUN, "reason"),
    _person("runs retry", "queue the next attempt of a run that has ended", "actions:retry", _RUN),
    _person("runs approve", "approve a run that waits for it; not one that you queued", "actions:approve", _RUN),
    _person("runs reject", "reject a run that waits for an approval", "actions:reject", _RUN, "reason"),
    _person(
        "runs known", "mark errors of a failed run as known in its project", "actions:known",
        {**_RUN, "[ERROR]": "its fingerprint, as `runs show --json` lists it (default: all errors of the run)"},
        "note", "forget",
    ),
    _person("queue", "list the runs that wait, and why each waits", "queue:queue", None, "project", "limit"),
    _person("pause", "let no worker claim runs, of a project or of all", "queue:pause", _PROJECT, "reason"),
    _person("resume", "let workers claim runs again", "queue:resume", _PROJECT),
    _person("workers", "list the workers, and what each runs", "overview:workers", None, "limit"),
    _person(
        "drain", "let a worker claim no more runs, so that its host can be taken out", "drain:drain",
        {"WORKER": "its worker id"}, "undo", "wait", "timeout", "reason",
        notes="The worker finishes its runs, and stays drained, also when it starts again, until --undo.",
    ),
    Command(
        "projects sync", {"FILE": "TOML that describes a project, with a table [[workflows]] for each workflow"},
        "create or change a project as a file describes it", _DATABASE | {"dry_run"}, "project_files:sync", ("json",),
        "A workflow that the file does not name is disabled. Only an operator creates a project or changes its limits.",
    ),
    _person("projects", "list the projects, and what holds their runs back", "overview:listed_projects", None, "limit"),
    _person("workflows", "list workflows with their newest run", "overview:workflows", _ONE_PROJECT, "limit"),
    _person("tools list", "list the tools, and the image of each version", "overview:tools", None, "limit"),
    Command(
        "tools sync", {"FILE": "TOML with a table [[tools]] for each version of a tool"},
        "add and change tools as a file describes them", _DATABASE | {"dry_run"}, "tools:sync", ("json",),
        "A tool that the file does not name stays as it is.",
    ),
    _person(
        "members add", "give a user a role in a project", "members:add",
        {"PROJECT": "its slug", "ID": _ID, "ROLE": "viewer, developer, admin or owner"},
    ),
    _person(
        "members remove", "take a user out of a project", "members:remove", {"PROJECT": "its slug", "ID": _ID}
    ),
    _person("members", "list the members of projects, and their roles", "overview:members", _ONE_PROJECT, "limit"),
    Command(
        "hooks set",
        {"PROJECT": "its slug", "[-]": "read the secret from standard input (default: make and print one)"},
        "set the secret of a webhook, and print what a forge needs", _DATABASE | {"public_url"},
        "hooks:set_secret", ("json",),
    ),
    _person("hooks remove", "accept no webhook of a project any more", "hooks:remove", {"PROJECT": "its slug"}),
    Command(
        "doctor", {}, "check the control plane, and on a build host engine and disk", _DOCTOR, "doctor:doctor",
        ("json",),
        "Exit codes: 0 no finding is an error, 1 one is. A role that is not an operator's sees fewer checks.",
    ),
    Command(
        "console", {}, "serve runs, logs and the queue to browsers", _CONSOLE, "worker.console.command:console",
        notes="Needs the extra: pip install 'ops-worker[console]'. Without a sign-in (--jwt-secret, --jwks or"
        " --trusted-proxies) it listens on the loopback address only, with the rights of --database-url.",
    ),
    Command("db migrate", {}, "apply the migrations that the database lacks", _DATABASE, "db:migrate", ("json",)),
    Command("db status", {}, "list the migrations, applied or pending", _DATABASE, "db:status", ("json",)),
    Command("db verify", {}, "report what is missing or different in the schema", _DATABASE, "db:verify", ("json",)),
    Command(
        "db rollback",
        {"[VERSION]": "roll back this migration and all later ones (default: the newest only)"},
        "roll migrations back; the data in their tables is lost",
        _DATABASE | {"yes"},
        "db:rollback",
        ("json",),
    ),
    Command(
        "db create-worker",
        {"NAME": "of the role", "[-]": "read the password from standard input (default: generate and print one)"},
        "create a role for a build host, or set its password",
        _DATABASE,
        "db:create_worker",
        ("json",),
    ),
    Command(
        "db create-console",
        {"NAME": "of the role", "[-]": "read the password from standard input (default: generate and print one)"},
        "create a role for a console, or set its password",
        _DATABASE,
        "db:create_console",
        ("json",),
    ),
    Command(
        "completion",
        {"SHELL": ", ".join(SHELLS)},
        "print a script by which a shell completes commands and flags",
        frozenset({"env_file", "version"}),
        "completion:completion",
    ),
    Command("prune", {}, "delete expired artifacts, old logs, events and volumes", _PRUNE, "prune:prune", ("json",)),
)  # fmt: skip
"""All other commands, in the order of the help."""


def commands_below(words: Sequence[str]) -> tuple[Command, ...]:
    """The commands whose names begin with these words; ``db`` has five."""
    return tuple(each for each in COMMANDS if words and each.words[: len(words)] == tuple(words))
