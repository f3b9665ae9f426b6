"""A preview: a commit with a new database, for the runtime to serve. Its data is gone when the run ends.

Steps: unpack the build into the volume; take the template of the dependencies that the tests use, with demo data;
install the project's modules; give the users a password; make the release the current one.
"""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from . import database, switching
from .cache import Cache
from .steps import Failure, run, step
from .volume import Volume

NAME = "preview"
"""The database."""

PASSWORD = "preview_password"  # noqa: S105 - the name of a secret


def make(build: Path, volume: Volume, cache: Cache, work: Path, hidden: Path) -> None:
    """Makes the preview of a build; ``hidden`` is the folder of the run's secrets.

    Raises:
        Failure: a module cannot be installed
    """
    from . import addons, building, deploying, releases, testing  # noqa: PLC0415 - the image has what they import
    from .project import configure, installation  # noqa: PLC0415

    commit = json.loads((build / building.MANIFEST).read_text())["commit"]
    release = f"{NAME}-{commit.removeprefix('folder-')[:12]}"
    project = releases.unpack(build, volume, release, NAME)
    addons.check(project.own, project.addons, project.python_path)
    config = configure(project, work)
    testing.template(project, testing.Options(), cache, config)
    filestores = work / "data" / "filestore"
    database.query(f'alter database "{testing.TEMPLATE}" rename to "{NAME}"')
    if (filestores / testing.TEMPLATE).is_dir():
        (filestores / testing.TEMPLATE).rename(filestores / NAME)
    step(f"preview: installing {', '.join(project.own)}")
    run(
        [*installation(config, NAME, project.own), "--log-level=warn"],
        thing="preview",
        advice="see Odoo's message above: a module of the project cannot be installed",
        env=addons.path_variable(project.python_path),
    )
    if (filestores / NAME).is_dir():
        shutil.move(filestores / NAME, volume.filestore(NAME))
    deploying.set_password(NAME, password(hidden / PASSWORD), "password is not null")
    volume.serve(release)
    step(f"preview: commit {commit} is ready to be served")


def check_place(volume: Volume) -> None:
    """A preview never touches what is there already.

    Raises:
        Failure: the volume has a release, or the server the database
    """
    database.await_server()
    if volume.current:
        raise Failure(
            f"volume {volume.folder}: it has the release {volume.current}",
            "remove --preview to serve it, or mount no volume there for a preview",
        )
    if switching.oid(NAME):
        raise Failure(
            f"database {NAME}: the server has it already",
            "give the workflow a service named db, so that each preview has a server of its own",
        )


def password(secret: Path) -> str:
    """The secret, or a random one, which is printed. All users get it, since those of demo data are known."""
    chosen = secret.read_text().strip() if secret.is_file() else ""
    made = chosen or secrets.token_urlsafe(12)
    shown = f"that of the secret {PASSWORD}" if chosen else made
    step(f"preview: sign in as admin; the password of all its users is {shown}")
    return made
