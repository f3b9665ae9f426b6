"""The arguments of the program, and its exit codes: 0; 1 the work failed; 2 the arguments are wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import Cache
from .restic import Repository
from .source import Git, Source
from .steps import Failure, explain, say
from .volume import LOCK_SECONDS, Volume

if TYPE_CHECKING:
    from .project import Project


def main(arguments: Sequence[str] | None = None) -> int:
    options, rest = parser().parse_known_args(arguments)
    if rest and options.tool not in TAKE_MORE:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    tool: Callable[[argparse.Namespace, Sequence[str]], bool] = TOOLS[options.tool]
    try:
        return 0 if tool(options, rest) else 1
    except (Failure, OSError) as error:
        text = explain(error if isinstance(error, Failure) else of_the_system(error))
        say(text)
        if options.tool not in TAKE_MORE and os.access(options.artifacts, os.W_OK):
            (Path(options.artifacts) / "summary.md").write_text(f"- **FAILED** {text.removeprefix('ERROR: ')}\n")
        return 1


def of_the_system(error: OSError) -> Failure:
    """What the kernel refused, such as a full disk; the traceback is printed, since the place is not known."""
    traceback.print_exception(type(error), error, error.__traceback__, file=sys.stdout)
    thing = f"{error.filename or 'system'}: {error.strerror or error}"
    return Failure(thing, "see the lines above; check that the folder exists, has space, and is this user's")


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(
        prog="odoo-tool", description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else ""
    )
    parsed.set_defaults(artifacts=os.environ.get("OPS_ARTIFACTS_DIR", "/artifacts"))
    tools = parsed.add_subparsers(dest="tool", required=True, metavar="TYPE")

    code = argparse.ArgumentParser(add_help=False)
    code.add_argument("--repository", default="", metavar="URL", help="git repository of the project")
    code.add_argument("--source", type=Path, metavar="DIR", help="a folder with the code, instead of a repository")
    code.add_argument(
        "--cache", type=Path, default=Path("/cache"), metavar="DIR", help="the project's cache (%(default)s)"
    )
    code.add_argument("--secrets", type=Path, default=Path("/run/secrets"), metavar="DIR", help=argparse.SUPPRESS)
    code.add_argument("--modules", type=names, default=[], metavar="A,B", help="instead of all of the repository")

    test = tools.add_parser("test", parents=[code], help="run the tests of the project's modules")
    test.add_argument("--shards", type=positive, default=1, metavar="N", help="Odoo processes that share the tests")
    test.add_argument(
        "--test-tags", default="", metavar="TAGS", help="Odoo's --test-tags, instead of all tests; one shard"
    )
    test.add_argument("--no-coverage", action="store_true", help="do not measure coverage")
    test.add_argument("--no-demo", action="store_true", help="without demo data")
    test.add_argument("--fail-on-warnings", action="store_true", help="a warning in the log fails the run, too")

    tools.add_parser("build", parents=[code], help="pack add-ons, wheels, SBOM and manifest of a commit")

    place = os.environ.get("RESTIC_REPOSITORY", "/backups")
    stored = argparse.ArgumentParser(add_help=False)
    stored.add_argument("--backups", default=place, metavar="PLACE", help="restic repository (%(default)s)")

    backups = argparse.ArgumentParser(add_help=False, parents=[stored])
    backups.add_argument(
        "--database", required=True, type=database_name, metavar="NAME", help="the database, on the server of PGHOST"
    )
    backups.add_argument("--filestore", type=Path, metavar="DIR", help="the folder of the database's filestore")

    backup = tools.add_parser("backup", parents=[code, backups], help="back up a database, and prove the backup")
    backup.add_argument("--throwaway", default="db", metavar="HOST", help="server for the proof (%(default)s)")
    backup.add_argument("--check-all", action="store_true", help="read all data of the repository, not a seventh")

    restore = tools.add_parser("restore", parents=[code, backups], help="make a neutralised staging from a backup")
    restore.add_argument("--snapshot", default="", metavar="ID", help="instead of the newest proven backup")
    restore.add_argument("--url", default="", metavar="URL", help="web.base.url of the staging")
    restore.add_argument("--replace", action="store_true", help="replace the database if it exists")

    add_upgrade(tools.add_parser("upgrade", parents=[code, stored], help="rehearse new code on a proven backup"))

    volume = argparse.ArgumentParser(add_help=False)
    volume.add_argument(
        "--data", type=Path, default=Path("/data"), metavar="DIR", help="the project's volume (%(default)s)"
    )

    deploy = tools.add_parser("deploy", parents=[code, volume], help="make a build production, or change nothing")
    deploy.add_argument("--database", type=database_name, metavar="NAME", help="the database of production")
    deploy.add_argument("--build", type=Path, metavar="DIR", help="the artifacts of a build, instead of a repository")
    deploy.add_argument(
        "--install", type=names, default=[], metavar="A,B",
        help="install these; the first deploy installs all modules of the repository otherwise",
    )  # fmt: skip
    deploy.add_argument("--no-keep", action="store_true", help="delete what was replaced as soon as the new one works")
    instead = deploy.add_mutually_exclusive_group()
    instead.add_argument("--recover", action="store_true", help="only end a deploy that was killed")
    instead.add_argument("--revert", action="store_true", help="go back to what the last deploy replaced")

    runtime = tools.add_parser(
        "runtime", parents=[code, volume], help="serve the current release; more arguments are those of Odoo"
    )
    runtime.add_argument(
        "--preview", action="store_true", help="serve a commit with a new database and demo data, instead of a release"
    )
    runtime.add_argument("--port", type=positive, default=8069, help="the port that is served (%(default)s)")
    runtime.add_argument("--check", action="store_true", help="only tell whether it works, as a health check")

    server = tools.add_parser("postgres", help="serve PostgreSQL beside a run; more arguments are those of postgres")
    server.add_argument("--trust", action="store_true", help="accept every login without a password")
    server.add_argument("--durable", action="store_true", help="keep the data, for production")
    server.add_argument("--secrets", type=Path, default=Path("/run/secrets"), help=argparse.SUPPRESS)
    return parsed


def add_upgrade(upgrade: argparse.ArgumentParser) -> None:
    upgrade.add_argument(
        "--database", required=True, type=database_name, metavar="NAME", help="the database whose backup is taken"
    )
    upgrade.add_argument("--throwaway", default="db", metavar="HOST", help="server for the rehearsal (%(default)s)")
    upgrade.add_argument("--snapshot", default="", metavar="ID", help="instead of the newest proven backup")
    upgrade.add_argument("--update-all", action="store_true", help="also update modules whose files did not change")
    upgrade.add_argument("--urls", type=names, default=[], metavar="PATH,PATH", help="pages to open, such as /shop")
    upgrade.add_argument(
        "--keep-as", type=database_name, metavar="NAME", help="keep the result for the upgrade of NAME"
    )
    upgrade.add_argument(
        "--advisories", type=Path, metavar="FILE", help="JSON with known problems, instead of ODOO_ADVISORIES"
    )


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def database_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text, re.ASCII):
        raise ValueError(text)
    return text


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


@contextlib.contextmanager
def fetched(options: argparse.Namespace) -> Iterator[tuple[Source, Cache, Path]]:
    """The code of the run, its cache, and a folder to work in, which is removed at the end."""
    # The libraries of the image are imported where they are used, so that the arguments can be read without them.
    from .project import fetch  # noqa: PLC0415

    cache = Cache(options.cache)
    with tempfile.TemporaryDirectory(prefix="odoo-tool-") as folder:
        work = Path(folder)
        ref, commit = os.environ.get("OPS_GIT_REF", ""), os.environ.get("OPS_GIT_COMMIT", "")
        git = Git(cache.folder / "git", options.secrets)
        yield fetch(options.repository, options.source, ref, commit, git, work), cache, work


def build(options: argparse.Namespace, _: Sequence[str]) -> bool:
    from . import building  # noqa: PLC0415

    with fetched(options) as (source, cache, work):
        slug = os.environ.get("OPS_PROJECT", "")
        return building.build(source, options.modules, slug, cache, work, Path(options.artifacts))


def test(options: argparse.Namespace, _: Sequence[str]) -> bool:
    from . import database, testing  # noqa: PLC0415
    from .project import prepare  # noqa: PLC0415

    database.defaults(options.secrets)
    with fetched(options) as (source, cache, work):
        project = prepare(source, cache, work, options.modules)
        chosen = testing.Options(
            options.shards, options.test_tags, not options.no_coverage, options.fail_on_warnings, not options.no_demo
        )
        return testing.test(project, chosen, cache, work, Path(options.artifacts))


def backup(options: argparse.Namespace, _: Sequence[str]) -> bool:
    from . import backup, database  # noqa: PLC0415

    if "PGHOST" not in os.environ:
        raise Failure("PGHOST: it is missing", "set it in the workflow's env to the server of the database")
    database.defaults(options.secrets)
    with prepared(options) as (project, cache, work):
        chosen = backup.Options(options.database, options.filestore, options.throwaway, options.check_all)
        return backup.backup(project, repository(options, cache), chosen, work, Path(options.artifacts))


def restore(options: argparse.Namespace, _: Sequence[str]) -> bool:
    from . import database, restoring  # noqa: PLC0415

    database.defaults(options.secrets)
    with prepared(options) as (project, cache, work):
        chosen = restoring.Options(options.database, options.filestore, options.snapshot, options.url, options.replace)
        return restoring.restore(project, repository(options, cache), chosen, work, Path(options.artifacts))


def upgrade(options: argparse.Namespace, _: Sequence[str]) -> bool:
    from . import upgrading  # noqa: PLC0415

    with prepared(options) as (project, cache, work):
        told = options.advisories
        text = told.read_text() if told else os.environ.get("ODOO_ADVISORIES", "")
        chosen = upgrading.Options(
            options.database, options.throwaway, options.snapshot, text, options.urls, options.update_all,
            options.keep_as or "",
        )  # fmt: skip
        return upgrading.upgrade(project, repository(options, cache), chosen, work, Path(options.artifacts))


def repository(options: argparse.Namespace, cache: Cache) -> Repository:
    return Repository(options.backups, options.secrets, cache.folder, os.environ.get("OPS_PROJECT", "") or "odoo")


@contextlib.contextmanager
def prepared(options: argparse.Namespace) -> Iterator[tuple[Project, Cache, Path]]:
    """The project, or Odoo alone if neither a repository nor a folder is named."""
    from .project import bare, prepare  # noqa: PLC0415

    if options.repository or options.source:
        with fetched(options) as (source, cache, work):
            yield prepare(source, cache, work, options.modules), cache, work
    else:
        with tempfile.TemporaryDirectory(prefix="odoo-tool-") as folder:
            yield bare(Path(folder)), Cache(options.cache), Path(folder)


def postgres(options: argparse.Namespace, rest: Sequence[str]) -> bool:
    from .postgres import serve  # noqa: PLC0415

    password = os.environ.get("POSTGRES_PASSWORD")
    secret = options.secrets / "pgpassword"
    if password is None and secret.is_file():
        password = secret.read_text().rstrip("\n")
    serve(os.environ.get("POSTGRES_USER", "odoo"), password, options.trust, rest, durable=options.durable)
    return True


def deploy(options: argparse.Namespace, _: Sequence[str]) -> bool:
    from . import database  # noqa: PLC0415

    if not (options.database or options.recover or options.revert):
        raise Failure("--database: it is missing", "name the database of production in the workflow's command")
    database.defaults(options.secrets)
    volume, artifacts = Volume(options.data), Path(options.artifacts)
    volume.ensure()
    with volume.held("lock", LOCK_SECONDS) as mine:
        if not mine:
            raise Failure(f"volume {options.data}: another deploy works on it", "wait for it, or cancel it")
        if not options.recover:
            volume.check_maintenance()
        from . import building, deploying, switching  # noqa: PLC0415

        if options.recover or volume.journal():
            deploying.recover(volume, artifacts)
        if options.recover:
            return True
        if options.revert:
            return deploying.undo(volume, artifacts)
        switching.application(options.database)
        chosen = deploying.Options(options.database, options.install, not options.no_keep)
        if options.build:
            with tempfile.TemporaryDirectory(prefix="odoo-tool-") as folder:
                return deploying.deploy(options.build, volume, chosen, Path(folder), artifacts)
        with fetched(options) as (source, cache, work):
            slug = os.environ.get("OPS_PROJECT", "")
            build = building.made(source, options.modules, slug, cache, work)
            return deploying.deploy(build, volume, chosen, work, artifacts)


def runtime(options: argparse.Namespace, rest: Sequence[str]) -> bool:
    from . import database, supervisor  # noqa: PLC0415

    volume = Volume(options.data)
    if options.check:
        return supervisor.check(volume, options.port)
    database.defaults(options.secrets)
    volume.ensure()
    if options.preview:
        make_preview(options, volume)
    elif options.repository or options.source:
        raise Failure("--repository and --source: only a preview takes them", "add --preview, or remove them")
    supervisor.serve(volume, options.port, rest)
    return True


def make_preview(options: argparse.Namespace, volume: Volume) -> None:
    from . import building, preview  # noqa: PLC0415

    preview.check_place(volume)
    with fetched(options) as (source, cache, work):
        build = building.made(source, options.modules, os.environ.get("OPS_PROJECT", ""), cache, work)
        preview.make(build, volume, cache, work, options.secrets)


TOOLS = {
    "backup": backup,
    "build": build,
    "deploy": deploy,
    "postgres": postgres,
    "restore": restore,
    "runtime": runtime,
    "test": test,
    "upgrade": upgrade,
}
TAKE_MORE = {"postgres", "runtime"}
"""Their other arguments are those of the program that they start."""

if __name__ == "__main__":
    sys.exit(main())
