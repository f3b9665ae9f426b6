"""The file of the host's destinations: what it says, and that each mistake is named by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from worker.errors import ConfigurationError, SpecError
from worker.model import fields
from worker.outcomes.settings import Notifications, Secrets, load
from worker.run.secrets import SecretsFolder

FORGE = 'name = "f"\nkind = "github"\nrepository = "acme/odoo"\ntoken = "token"'
CHAT = 'name = "c"\nkind = "webhook"\nurl_secret = "chat"'
MAIL = 'name = "m"\nkind = "mail"\nhost = "smtp.example"\nfrom = "a@b.example"\nto = ["c@d.example"]'


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets" / "ops-notify"
    folder.mkdir(parents=True)
    (folder / "token").write_text("t0ken\n")
    (folder / "chat").write_text("https://chat.example/hooks/s3cret\n")
    (folder / "lines").write_text("a\nb\n")
    return folder.parent


def read(secrets: Path | None, *destinations: str, head: str = "") -> Notifications:
    folder = secrets.parent if secrets else Path("/nowhere")
    path = folder / "notify.toml"
    path.write_text(head + "".join(f"\n[[destinations]]\n{each}\n" for each in destinations))
    return load(path, Secrets(secrets))


def test_each_kind_wants_what_it_needs(secrets: Path) -> None:
    every: dict[str, Any] = {"projects": ["*"], "workflows": ["*"], "branches": ["*"]}
    found = read(secrets, FORGE, CHAT, f'{MAIL}\nevents = ["every"]\nprojects = ["acme"]\nbranches = ["18.0"]')
    assert [each.wanted for each in found.destinations] == [
        {"name": "f", "events": ["queued", "started", "every"], "commits_only": True, **every},
        {"name": "c", "events": ["red", "green_again"], "commits_only": False, **every},
        {"name": "m", "events": ["every"], "commits_only": False, **every, "projects": ["acme"], "branches": ["18.0"]},
    ]


@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ('name = "x"', "destinations[0].kind: expected one of github, gitlab, gitea, mail, webhook"),
        ('name = "x"\nkind = "irc"', "destinations[0].kind: expected one of"),
        (FORGE.replace('"f"', '"A b"'), "destinations[0].name: expected lower case letters, digits and -"),
        (f"{FORGE}\ncolour = 1", "destinations[0].colour: there is no such key"),
        (FORGE.replace("acme/odoo", "odoo"), "destinations[0].repository: expected OWNER/REPOSITORY"),
        (FORGE.replace("acme/odoo", "acme/.."), "destinations[0].repository: expected OWNER/REPOSITORY"),
        (FORGE.replace("acme/odoo", "acme/a?b"), "destinations[0].repository: expected OWNER/REPOSITORY"),
        (FORGE.replace('"token"', '"../token"'), "destinations[0].token: expected the name of a file in"),
        (FORGE.replace("github", "gitea"), "destinations[0]: url: expected the URL of the forge"),
        (f'{FORGE}\nurl = "http://api.example"', "destinations[0]: url: expected https://; http:// needs"),
        (f'{FORGE}\nurl = "https://u:p@api.example"', "destinations[0].url: expected a URL without user and password"),
        (f'{FORGE}\nurl = "ftp://api.example"', "destinations[0].url: expected a URL such as"),
        (f'{FORGE}\nurl = "https://api.example:99999"', "destinations[0].url: expected a URL such as"),
        (f'{FORGE}\nca_file = "/nowhere"', "destinations[0].ca_file: there is no such file"),
        (f'{FORGE}\nevents = ["red"]', "destinations[0].events: there is no such key"),
        (f'{CHAT}\nevents = ["red", "blue"]', "destinations[0].events[1]: expected one of 'red', 'green_again' or"),
        (f"{CHAT}\nbranches = []", "destinations[0].branches: expected at least 1 entries"),
        (f'{CHAT}\nallow_private = "yes"', "destinations[0].allow_private: expected true or false"),
        (f'{MAIL}\nusername = "u"', "destinations[0]: password: expected with username, and only with it"),
        (f'{MAIL}\ntls = "none"', 'destinations[0]: tls: expected "starttls" or "implicit"'),
        (MAIL.replace('"c@d.example"', '"c@d.example, x"'), "destinations[0].to[0]: expected a mail address"),
        (f"{CHAT}\n\n[[destinations]]\n{CHAT}", "destinations: expected a different name for each"),
        (FORGE.replace('"token"', '"none"'), "destination f: secret 'none': cannot read SECRETS_DIR/ops-notify/none"),
        (FORGE.replace('"token"', '"lines"'), "destination f: secret 'lines': expected one line of at most"),
        (CHAT.replace('"chat"', '"token"'), "destination c: secret 'token': expected a URL such as"),
    ],
    ids=lambda value: str(value)[-40:],
)  # fmt: skip
def test_a_mistake_is_named_by_its_key(secrets: Path, destination: str, error: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(secrets, destination)
    assert refused.value.field == "notify_file"
    assert f"notify.toml: {error}" in refused.value.problem
    for secret in ("u:p", "t0ken", "s3cret"):
        assert secret not in refused.value.problem


def test_a_file_without_destinations_or_that_is_none_is_refused(secrets: Path) -> None:
    for text, error in (("", "destinations: required"), ("x = [", "not a TOML file"), ("a = 1", "a: there is no such")):
        with pytest.raises(ConfigurationError, match=error):
            read(secrets, head=text)
    with pytest.raises(ConfigurationError, match=r"cannot read .*: No such file"):
        load(secrets / "none.toml", Secrets(secrets))


def test_no_workflow_reaches_the_secrets_of_notifications(secrets: Path) -> None:
    read(secrets, FORGE)
    for key, name in (("ops-notify", "token"), ("acme", "ops-notify"), ("acme", "token"), ("", "token")):
        with pytest.raises(SpecError):
            SecretsFolder(secrets).read(key, [name])
    with pytest.raises(ValidationError, match="expected the name of a secret"):
        TypeAdapter(fields.Secrets).validate_python(["ops-notify/token"])
