"""The type ``build``: a commit from a git server over SSH, with a submodule and Python requirements, built once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.odoo.conftest import Bench, Done, Project, writable
from tests.support.docker import docker, printed, until
from tests.support.postgres import run_sync

pytestmark = pytest.mark.timeout(600)

SERVER = """
set -e
ssh-keygen -q -t ed25519 -N '' -f /tmp/host_key
exec /usr/sbin/sshd -D -e -f /dev/null -p 2222 -h /tmp/host_key -o PidFile=none -o UsePAM=no -o StrictModes=no \\
  -o AuthorizedKeysFile=/srv/authorized_keys -o PasswordAuthentication=no \\
  -o 'SetEnv=GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*'
"""
HTTP_SERVER = """
import base64, http.server
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.headers["Authorization"] == "Basic " + base64.b64encode(b"deploy:token").decode():
            return super().do_GET()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.end_headers()
server = http.server.HTTPServer(("", 8080), Handler)
print("listening", flush=True)
server.serve_forever()
"""
IDENTITY = {
    **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
    "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
    "GIT_ALLOW_PROTOCOL": "file",
}


@dataclass(frozen=True)
class GitServer:
    """A git server in a container, which knows one deploy key."""

    folder: Path
    container: str
    known_hosts: str
    deploy_key: Path

    def publish(self, name: str, folder: Path, submodule: str = "") -> str:
        """Commits a folder and pushes it to a repository of the server; returns the commit."""
        bare = self.folder / f"{name}.git"
        shutil.rmtree(bare, ignore_errors=True)
        git("init", "-q", "--bare", "-b", "main", str(bare))
        git("init", "-q", "-b", "main", str(folder))
        if submodule:
            git("submodule", "--quiet", "add", str(self.folder / f"{submodule}.git"), f"lib/{submodule}", cwd=folder)
            git("config", "-f", ".gitmodules", f"submodule.lib/{submodule}.url", f"../{submodule}.git", cwd=folder)
        git("add", "-A", cwd=folder)
        git("commit", "-q", "-m", "first", cwd=folder)
        git("push", "-q", str(bare), "main", cwd=folder)
        git("update-server-info", cwd=bare)  # for a server that only has files
        return git("rev-parse", "HEAD", cwd=folder)


def git(*words: str, cwd: Path | None = None) -> str:
    command = ["git", "-c", "protocol.file.allow=always", *words]
    done = subprocess.run(command, check=True, cwd=cwd, env={**os.environ, **IDENTITY}, capture_output=True, text=True)
    return done.stdout.strip()


def new_key(bench: Bench, folder: Path) -> Path:
    """A deploy key in that folder, beside its public half; this host may have no OpenSSH."""
    words = ("-q", "-t", "ed25519", "-N", "", "-f", "/keys/deploy_key")
    docker("run", "--rm", "--network", "none", "--user", "0", "-v", f"{folder}:/keys", "--entrypoint", "ssh-keygen",
           bench.image, *words)  # fmt: skip
    return folder / "deploy_key"


@pytest.fixture(scope="module")
def server(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> GitServer:
    folder = tmp_path_factory.mktemp("git")
    folder.chmod(0o755)
    key = new_key(bench, folder.parent)
    shutil.copyfile(f"{key}.pub", folder / "authorized_keys")
    options = ("-v", f"{folder}:/srv:ro", "--user", "postgres", "--entrypoint", "sh")
    name = bench.serve("git", bench.image, "-c", SERVER, options=options)
    run_sync(lambda: until(lambda: "Server listening" in logs(name)))
    host_key = docker("exec", name, "cat", "/tmp/host_key.pub")  # noqa: S108 - in the container
    return GitServer(folder, name, f"[git]:2222 {host_key}", key)


def logs(name: str) -> str:
    return subprocess.run(
        ["docker", "logs", name], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


@pytest.fixture
def secrets(server: GitServer, bench: Bench, tmp_path: Path) -> Path:
    """The secrets of a run: files of its user with mode 0400."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "known_hosts").write_text(server.known_hosts)
    shutil.copyfile(server.deploy_key, folder / "deploy_key")
    own(folder, bench)
    return folder


def own(folder: Path, bench: Bench) -> None:
    user = int(printed("--network", "none", "--entrypoint", "id", bench.image, "-u"))
    for path in folder.iterdir():
        os.chown(path, user, user)
        path.chmod(0o400)


URL = "ssh://postgres@git:2222/srv/shop.git"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}


def contents(done: Done) -> dict[str, bytes]:
    files = (path for path in sorted(done.artifacts.rglob("*")) if path.is_file())
    return {str(path.relative_to(done.artifacts)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("series", "cssselect"), [("19", "1.6.0"), ("14", "1.3.0")])
def test_a_commit_is_built_once_and_each_time_to_the_same_bytes(
    benches: Callable[[str], Bench], server: GitServer, secrets: Path, project: Project, tmp_path: Path, series: str,
    cssselect: str,
) -> None:  # fmt: skip
    bench, project = benches(series), project.of(series)
    if series != "19":
        docker("network", "connect", "--alias", "git", bench.name, server.container)
        own(secrets, bench)
    replace(project, folder=tmp_path / "library").module("library", ["base"])
    server.publish("library", tmp_path / "library")
    project.add("queue_job")
    project.module("shop", ["library", "queue_job"])
    (project.folder / "requirements.txt").write_text("openupgradelib==3.13.7\n")
    (project.folder / "apt.txt").write_text("git\n")
    commit = server.publish("shop", project.folder, submodule="library")
    cache = writable(bench.folder / "cache")

    mounted = {project.wheels: "/wheels:ro"}

    def build(env: dict[str, str], network: str | None = None) -> Done:
        done = bench.run("build", "--repository", URL, cache=cache, secrets=secrets, network=network,
                         env={**OFFLINE, **env, "OPS_PROJECT": "acme"}, volumes=mounted)  # fmt: skip
        assert done.code == 0, done.output
        return done

    first = build({"OPS_GIT_REF": "main"})
    made = contents(first)
    manifest = json.loads(made["manifest.json"])
    assert manifest["commit"] == commit
    assert {name: each["own"] for name, each in manifest["modules"].items()} == {
        "library": False,
        "queue_job": True,
        "shop": True,
    }
    assert manifest["files"] == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in made.items()
        if name not in {"manifest.json", "summary.md"}
    }
    with tarfile.open(first.artifacts / "addons.tar.gz") as archive:
        assert {"library/__manifest__.py", "queue_job/models/queue_job.py", "shop/__init__.py"} <= set(
            archive.getnames()
        )
    parts = {part["purl"]: part for part in json.loads(made["sbom.cdx.json"])["components"]}
    lock = made["wheels/requirements.lock"].decode().splitlines()
    assert [line.partition(" --hash=sha256:")[0] for line in lock] == [
        f"cssselect=={cssselect}",
        "openupgradelib==3.13.7",
    ]
    [wheel] = [name for name in made if name.startswith("wheels/openupgradelib-")]
    assert parts["pkg:pypi/openupgradelib@3.13.7"]["hashes"] == [
        {"alg": "SHA-256", "content": hashlib.sha256(made[wheel]).hexdigest()}
    ]
    assert f"pkg:generic/odoo-addon/library@{series}.0.1.0.0" in parts
    assert any(purl.startswith(f"pkg:deb/debian/odoo-{series}@{series}.0") for purl in parts)

    second = build({"OPS_GIT_COMMIT": commit}, network="none")  # the mirror has the commit: no server is asked
    assert ": from the cache" in second.output
    assert contents(second) == made
    shutil.rmtree(cache / "builds")
    rebuilt = build({"OPS_GIT_COMMIT": commit[:12]})
    assert ": from the cache" not in rebuilt.output.replace("wheels", "")
    assert contents(rebuilt) == made


@pytest.mark.parametrize("series", ["19", "14"])
def test_the_credentials_of_git_are_used_and_settings_of_a_user_are_not(
    benches: Callable[[str], Bench], server: GitServer, project: Project, tmp_path: Path, series: str
) -> None:
    bench, project = benches(series), project.of(series)
    options = ("-v", f"{server.folder}:/srv:ro", "--workdir", "/srv", "--entrypoint", "python3")
    name = bench.serve("web", bench.image, "-c", HTTP_SERVER, options=options)
    run_sync(lambda: until(lambda: "listening" in logs(name)))
    project.module("shop", ["base"])
    server.publish("shop", project.folder)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "git_credentials").write_text("http://deploy:token@web:8080\n")
    own(secrets, bench)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text('[url "http://no-such-host/"]\n\tinsteadOf = http://web:8080/\n')
    env = {**OFFLINE, "OPS_GIT_REF": "main", "HOME": "/home/settings"}
    done = bench.run("build", "--repository", "http://web:8080/shop.git", secrets=secrets, env=env,
                     volumes={tmp_path / "home": "/home/settings:ro"})  # fmt: skip
    assert done.code == 0, done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "known_hosts").unlink(), "secret known_hosts: it is missing"),
        (
            lambda folder: (folder / "known_hosts").write_text(
                "[git]:2222 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPsAKt9XJDyyB4qFCVBo4Xh/4s0cS4q8kT5n7hNbqDHd\n"
            ),
            "Host key verification failed",
        ),
        (lambda folder: (folder / "deploy_key").unlink(), "Permission denied"),
    ],
    ids=["no-known-hosts", "another-host-key", "no-deploy-key"],
)
def test_the_host_key_and_the_deploy_key_are_needed(
    bench: Bench, secrets: Path, change: Callable[[Path], object], message: str
) -> None:
    change(secrets)
    own(secrets, bench)
    done = bench.run("build", "--repository", URL, secrets=secrets, env={"OPS_GIT_REF": "main"})
    assert done.code == 1
    assert message in done.output
    assert f"{URL}" in done.summary.splitlines()[0]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"OPS_GIT_REF": "18.0"}, f"ref '18.0': {URL} does not have it"),
        ({"OPS_GIT_COMMIT": "4f2a91c"}, f"commit 4f2a91c: {URL} does not have it"),
        ({}, f"repository {URL}: no commit is named"),
    ],
)
def test_what_the_repository_does_not_have_is_named(
    bench: Bench, server: GitServer, secrets: Path, env: dict[str, str], message: str
) -> None:
    if not (server.folder / "shop.git").exists():
        git("init", "-q", "--bare", "-b", "main", str(server.folder / "shop.git"))
    done = bench.run("build", "--repository", URL, secrets=secrets, env=env)
    assert done.code == 1
    assert f"ERROR: {message}\n" in done.output


MANIFEST = "shop/__manifest__.py"


def needs(kind: str, name: str) -> str:
    return repr({"external_dependencies": {kind: [name]}})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({MANIFEST: "{'depends': ['sale', 'no_such']}"}, "module shop: depends on no_such, which is in no"),
        ({MANIFEST: needs("python", "zeepx>=4")}, "module shop: needs the Python package zeepx>=4"),
        ({MANIFEST: needs("bin", "wkhtmltox")}, "module shop: needs the program wkhtmltox"),
        ({"apt.txt": "git\nfonts-nothing\n"}, "apt.txt, line 2: the package fonts-nothing is not in this image"),
        ({"requirements.txt": "no-such-package\n"}, "requirements.txt: pip ended with exit code 1"),
        ({MANIFEST: "{'installable': False}"}, "modules: no installable add-on in"),
    ],
)
def test_what_is_missing_is_named_with_what_wants_it(
    bench: Bench, project: Project, files: dict[str, str], message: str
) -> None:
    project.module("shop", ["base"])
    for name, text in files.items():
        (project.folder / name).write_text(text)
    done = bench.run(
        "build", source=project.folder, network="none", env=OFFLINE, volumes={project.wheels: "/wheels:ro"}
    )
    assert done.code == 1
    assert f"ERROR: {message}" in done.output
    assert done.summary.startswith(f"- **FAILED** {message}")
    assert "What to do: " in done.summary
