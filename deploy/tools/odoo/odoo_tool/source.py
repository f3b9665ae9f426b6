"""The code of a run: a commit of a git repository with its submodules, through bare mirrors in the project's cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from .cache import digest
from .steps import Failure, read, step

OVER_SSH = re.compile(r"(?:ssh://|[\w.-]+@[\w.-]+:)")
EPOCH = 315532800  # 1980-01-01, for a folder: no archive has an earlier time
DEPTH = 5  # of submodules in submodules


@dataclass(frozen=True)
class Source:
    """A folder with code."""

    folder: Path
    commit: str
    time: int = EPOCH
    """when the commit was made"""
    foreign: tuple[Path, ...] = ()
    """folders of submodules"""


@dataclass(frozen=True)
class Git:
    """How git is called: the folder of its mirrors, and the secrets of the run."""

    mirrors: Path
    secrets: Path

    def environment(self) -> dict[str, str]:
        secret = self.secrets
        ssh = "ssh -F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o LogLevel=ERROR"
        ssh += f" -o UserKnownHostsFile={secret / 'known_hosts'} -o GlobalKnownHostsFile=/dev/null"
        if (secret / "deploy_key").is_file():
            ssh += f" -i {secret / 'deploy_key'}"
        return {
            "GIT_SSH_COMMAND": ssh,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": "/dev/null",  # no settings of a user; GIT_CONFIG_GLOBAL needs git 2.32, and bullseye has 2.30
            "XDG_CONFIG_HOME": "/dev/null",
            "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
        }

    def command(self, words: Sequence[str]) -> list[str]:
        """The call of git with the settings of the run; GIT_CONFIG_COUNT needs git 2.31."""
        settings = ["core.hooksPath=/dev/null", "advice.detachedHead=false", "gc.auto=0"]
        credentials = self.secrets / "git_credentials"
        if credentials.is_file():
            settings.append(f"credential.helper=store --file={credentials}")
        return ["git", *(word for setting in settings for word in ("-c", setting)), *words]

    def checkout(self, url: str, ref: str, commit: str, folder: Path, depth: int = 0) -> Source:
        """Writes the files of a commit, or of the newest commit of a ref, into a new folder.

        Raises:
            Failure: the server, the host key, the login, the commit or a submodule is not as needed
        """
        if depth > DEPTH:
            raise Failure(f"submodule {url}: more than {DEPTH} levels", "remove the submodules that contain themselves")
        self._need_host_key(url)
        mirror = self.mirrors / f"{digest([url])}.git"
        self.mirrors.mkdir(exist_ok=True)
        with _locked(mirror.with_suffix(".lock")):
            if not self._has(mirror, commit):
                self._fetch(mirror, url)
            commit = self._resolve(mirror, url, ref, commit)
        folder.mkdir(parents=True)
        self._git(
            ["--git-dir", str(mirror), "--work-tree", str(folder), "checkout", "--force", commit, "--", "."],
            thing=f"commit {commit} of {url}",
            advice="see git's message above; a cache that is damaged may be deleted, it is made anew",
            index=str(folder) + ".index",
        )
        Path(f"{folder}.index").unlink()
        foreign = []
        for path, sub_url, sub_commit in self._submodules(mirror, commit, folder):
            below = folder / path
            below.rmdir()  # git leaves an empty folder for it
            step(f"submodule {path}: commit {sub_commit[:12]}")
            foreign.append(below)
            resolved = resolve_url(url, sub_url)
            foreign += self.checkout(resolved, "", sub_commit, below, depth + 1).foreign
        made = self._ask("--git-dir", str(mirror), "show", "--no-patch", "--format=%ct", commit)
        return Source(folder, commit, int(made or EPOCH), tuple(foreign))

    def _need_host_key(self, url: str) -> None:
        if OVER_SSH.match(url) and not (self.secrets / "known_hosts").is_file():
            raise Failure(
                f"secret known_hosts: it is missing, so the host key of {url} cannot be checked",
                "store what `ssh-keyscan HOST` prints as this secret, after a comparison with the published key",
            )

    def _has(self, mirror: Path, commit: str) -> bool:
        """Whether the mirror has this very commit, so that no server is needed."""
        if not commit or not mirror.is_dir():
            return False
        return self._ask("--git-dir", str(mirror), "cat-file", "-e", f"{commit}^{{commit}}") is not None

    def _fetch(self, mirror: Path, url: str) -> None:
        step(f"fetching {url}")
        if not mirror.is_dir():
            self._git(["init", "--quiet", "--bare", str(mirror)], thing=f"mirror {mirror}", advice="see above")
        self._git(
            ["--git-dir", str(mirror), "fetch", "--quiet", "--prune", "--force", "--", url, "+refs/*:refs/mirror/*"],
            thing=f"repository {url}",
            advice="for 'Host key verification failed' compare the secret known_hosts with the server's key; for a "
            "refused login add the public half of the secret deploy_key to the repository; else check URL and network",
        )

    def _resolve(self, mirror: Path, url: str, ref: str, commit: str) -> str:
        """The full id of the commit."""
        names = [commit] if commit else [f"refs/mirror/heads/{ref}", f"refs/mirror/tags/{ref}"]
        if not commit and ref.startswith("refs/"):
            names = [f"refs/mirror/{ref.removeprefix('refs/')}"]
        for name in names:
            found = self._ask("--git-dir", str(mirror), "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
            if found is not None:
                return found
        raise Failure(
            f"{f'commit {commit}' if commit else f'ref {ref!r}'}: {url} does not have it",
            "push it, or correct git_ref and git_commit of the workflow or of the run",
        )

    def _submodules(self, mirror: Path, commit: str, folder: Path) -> Iterator[tuple[str, str, str]]:
        """Path, URL and commit of each submodule."""
        file = folder / ".gitmodules"
        if file.is_symlink() or not file.is_file() or not file.read_text().strip():  # git reads no link either
            return
        advice = "repair .gitmodules of the repository"
        words = ["config", "--file", str(file), "--get-regexp", r"^submodule\..*\.(path|url)$"]
        listed = self._git(words, thing=".gitmodules", advice=advice)
        values = dict(line.split(" ", 1) for line in listed.splitlines())
        for key, path in values.items():
            if not key.endswith(".path"):
                continue
            name = key.removesuffix(".path")
            tree = self._git(["--git-dir", str(mirror), "ls-tree", commit, "--", path], thing=path, advice=advice)
            words = tree.split()
            if len(words) < 3 or words[1] != "commit":  # noqa: PLR2004 - mode, type, id
                continue  # named there, but not part of this commit
            if f"{name}.url" not in values:
                raise Failure(f"submodule {path}: .gitmodules has no url for it", advice)
            yield path, values[f"{name}.url"], words[2]

    def _ask(self, *words: str) -> str | None:
        """What git answers; None if its exit code is not 0."""
        env = {**os.environ, **self.environment()}
        done = subprocess.run(self.command(words), check=False, capture_output=True, text=True, env=env)
        return done.stdout.strip() if done.returncode == 0 else None

    def _git(self, words: list[str], *, thing: str, advice: str, index: str = "") -> str:
        extra = {"GIT_INDEX_FILE": index} if index else {}
        return read(self.command(words), thing=thing, advice=advice, env={**self.environment(), **extra})


def resolve_url(parent: str, url: str) -> str:
    """The URL of a submodule; one that begins with ``./`` or ``../`` is relative to the URL of the repository."""
    if not url.startswith(("./", "../")):
        return url
    scp = re.fullmatch(r"([\w.-]+@[\w.-]+:)(.*)", parent)
    if scp:
        return scp[1] + os.path.normpath(f"{scp[2]}/{url}")
    scheme, separator, rest = parent.partition("://")
    if not separator:
        return os.path.normpath(f"{parent}/{url}")
    return f"{scheme}://" + urljoin(f"//{rest.rstrip('/')}/", url).removeprefix("//").rstrip("/")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
