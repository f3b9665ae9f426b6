"""The command ``restore``: a proven backup becomes a staging database that reaches no customer.

Steps: restore under another name; neutralise with Odoo's ``neutralize``, then with the rules below; check each rule;
start Odoo on it; only then give it its name. If anything fails, the new database is dropped, and the old one stays.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import database
from .backup import boot, check_modules, neutralize, place_filestore, unpack
from .project import Project, configure
from .restic import PROVEN, Repository
from .steps import Failure, step


@dataclass(frozen=True)
class Options:
    """What a workflow may choose."""

    database: str
    filestore: Path | None
    snapshot: str = ""
    url: str = ""
    replace: bool = False


@dataclass(frozen=True)
class Rule:
    """Something that a staging may not do. ``wrong`` selects the rows with which it could still do it."""

    name: str
    table: str
    repair: str
    wrong: str


RULES = (
    Rule(
        "no mail goes out",
        "ir_mail_server",
        "update ir_mail_server set active = false where smtp_host <> 'invalid'",
        "select id from ir_mail_server where active and smtp_host <> 'invalid'",
    ),
    Rule(
        "a mail server that reaches no one is the only one",
        "ir_mail_server",
        "insert into ir_mail_server (name, smtp_host, smtp_port, smtp_encryption, smtp_authentication, active) "
        "select 'staging: no mail', 'invalid', 25, 'none', 'login', true "
        "where not exists (select from ir_mail_server where active and smtp_host = 'invalid')",
        "select 1 where not exists (select from ir_mail_server where active and smtp_host = 'invalid')",
    ),
    Rule(
        "no mail is fetched",
        "fetchmail_server",
        "update fetchmail_server set active = false",
        "select id from fetchmail_server where active",
    ),
    Rule(
        "no scheduled action runs",
        "ir_cron",
        "update ir_cron set active = false",
        "select id from ir_cron where active",
    ),
    Rule(
        "no payment is taken",
        "payment_provider",
        "update payment_provider set state = 'disabled' where state = 'enabled'",
        "select id from payment_provider where state = 'enabled'",
    ),
    Rule(
        "no webhook is called",
        "ir_act_server",
        "update ir_act_server set webhook_url = 'http://invalid.invalid' where state = 'webhook'",
        "select id from ir_act_server where state = 'webhook' and webhook_url <> 'http://invalid.invalid'",
    ),
    Rule(
        "no one signs in with another site's account",
        "auth_oauth_provider",
        "update auth_oauth_provider set enabled = false",
        "select id from auth_oauth_provider where enabled",
    ),
    Rule(
        "no paid service of Odoo is used",
        "iap_account",
        "update iap_account set account_token = null",
        "select id from iap_account where account_token is not null",
    ),
    Rule(
        "no job waits in a queue",
        "queue_job",
        "update queue_job set state = 'cancelled' where state not in ('done', 'cancelled', 'failed')",
        "select id from queue_job where state not in ('done', 'cancelled', 'failed')",
    ),
    Rule(
        "the database is marked as neutralised",
        "ir_config_parameter",
        "",
        "select 1 where not exists (select from ir_config_parameter where key = 'database.is_neutralized')",
    ),
    Rule(
        "a banner is shown",
        "ir_ui_view",
        "update ir_ui_view set active = true where key = 'web.neutralize_banner'",
        "select 1 where not exists (select from ir_ui_view where key = 'web.neutralize_banner' and active)",
    ),
)


def restore(project: Project, repository: Repository, options: Options, work: Path, artifacts: Path) -> bool:
    """Restores a backup as a staging; writes ``restore.json`` and ``summary.md``."""
    if project.odoo.major < 16:  # noqa: PLR2004
        raise Failure(
            f"Odoo {project.odoo.version}: it has no command neutralize, which exists from Odoo 16 on",
            "restore it by hand on a host without a network",
        )
    if options.filestore is not None and not os.access(options.filestore.parent, os.W_OK):
        raise Failure(
            f"--filestore {options.filestore}: this user may not write to its parent folder",
            "give the workflow a volume there that the user of the image may write to",
        )
    database.await_server()
    server: dict[str, str] = {}
    if exists(options.database) and not options.replace:
        raise Failure(
            f"database {options.database}: it exists already",
            "name another one with --database, or let the restore replace it with --replace",
        )
    chosen = repository.latest(PROVEN) if not options.snapshot else repository.named(options.snapshot)
    name = f"{options.database}_new"
    database.drop(name)
    try:
        report = make(project, repository, chosen, name, options, work)
        config = configure(project, work)
        step("restore: starting Odoo on it")
        report["boot_seconds"] = round(boot(project, config, name, server), 1)
        take_place(options, name, config)
    except BaseException:
        step(f"restore: dropping {name}; {options.database} stays as it was")
        database.drop(name)
        raise
    (artifacts / "restore.json").write_text(json.dumps(report, indent=2) + "\n")
    (artifacts / "summary.md").write_text(summary(options.database, report))
    return True


def exists(name: str) -> bool:
    quoted = name.replace("'", "''")
    return database.query(f"select 1 from pg_database where datname = '{quoted}'") == "1"  # noqa: S608 - quoted


def make(
    project: Project, repository: Repository, chosen: Mapping[str, object], name: str, options: Options, work: Path
) -> dict[str, object]:
    """Restores and neutralises; returns what the report says."""
    snapshot, paths = str(chosen["id"]), chosen["paths"]
    assert isinstance(paths, list)  # noqa: S101 - for the type checker
    restored = unpack(repository, snapshot, paths, name, work, {})
    config = configure(project, work)
    files = place_filestore(restored, config, name, {})
    check_modules(project, name, {})
    step("restore: neutralising")
    neutralize(project, config, name, {})
    checked = harden(name)
    identity(name, options.url)
    return {"snapshot": snapshot, "made": chosen["time"], "files_checked": files, "checked": checked}


def harden(name: str) -> list[str]:
    """Applies each rule whose table exists, then checks all; returns the rules that hold.

    Raises:
        Failure: one does not hold
    """
    there = set(database.query("select tablename from pg_tables where schemaname = 'public'", name).split())
    rules = [rule for rule in RULES if rule.table in there]
    for rule in rules:
        if rule.repair:
            database.query(rule.repair, name)
    for rule in rules:
        wrong = database.query(rule.wrong, name).split()
        if wrong:
            raise Failure(
                f"staging: {rule.name!r} does not hold: {rule.table} has {', '.join(wrong[:10])}",
                "find out what changes these rows back, such as a trigger or a module's own neutralize.sql",
            )
        step(f"restore: checked that {rule.name}")
    return [rule.name for rule in rules]


def identity(name: str, url: str) -> None:
    """A new secret and a new id, so that no session and no token of production is valid; and a URL of its own."""
    values = {"database.secret": secrets.token_hex(32), "database.uuid": str(uuid.uuid4())}
    if url:
        values.update({"web.base.url": url, "web.base.url.freeze": "True"})
    for key, value in values.items():
        quoted = value.replace("'", "''")
        database.query(
            f"insert into ir_config_parameter (key, value) values ('{key}', '{quoted}') "  # noqa: S608 - quoted
            "on conflict (key) do update set value = excluded.value",
            name,
        )


def take_place(options: Options, name: str, config: Path) -> None:
    """Gives the new database and its filestore their place."""
    restored = config.parent / "data" / "filestore" / name
    if options.filestore is not None:
        part = options.filestore.with_name(f"{options.filestore.name}.new")
        shutil.rmtree(part, ignore_errors=True)
        if restored.is_dir():
            shutil.copytree(restored, part)
        else:
            part.mkdir(parents=True)
    step(f"restore: {name} becomes {options.database}")
    database.drop(options.database)
    database.query(f'alter database "{name}" rename to "{options.database}"')
    if options.filestore is not None:
        shutil.rmtree(options.filestore, ignore_errors=True)
        part.rename(options.filestore)


def summary(name: str, report: Mapping[str, object]) -> str:
    checked = report["checked"]
    assert isinstance(checked, list)  # noqa: S101 - for the type checker
    lines = [f"# Staging {name} is ready", "", f"- from backup {str(report['snapshot'])[:8]} of {report['made']}"]
    lines += [f"- {report['files_checked']} attachments compared", "", "Checked:", ""]
    return "\n".join([*lines, *(f"- {rule}" for rule in checked)]) + "\n"
