"""The command ``upgrade``: a newer release of an OCA add-on, with its migration script, on a copy of a production."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.odoo.conftest import Bench, Done, Project, addons_of, downloaded, writable
from tests.odoo.test_building import OFFLINE, own
from tests.support.docker import docker

pytestmark = pytest.mark.timeout(900)

MODEL = """
from odoo import fields, models

class Book(models.Model):
    _name = "shop.book"
    _description = "Book"

    name = fields.Char()
    pages = fields.Integer(compute="_compute_pages")

    def _compute_pages(self):
        for book in self:
            book.pages = 100
"""
VIEWS = """
<odoo>
  <record id="books" model="ir.actions.act_window">
    <field name="name">Books</field>
    <field name="res_model">shop.book</field>
    <field name="view_mode">list,form</field>
  </record>
  <record id="book_list" model="ir.ui.view">
    <field name="name">books</field>
    <field name="model">shop.book</field>
    <field name="arch" type="xml"><list><field name="name"/><field name="pages"/></list></field>
  </record>
  <menuitem id="shop" name="Shop"/>
  <menuitem id="shop_books" name="Books" parent="shop" action="books"/>
</odoo>
"""
ACCESS = """id,name,model_id:id,group_id:id,perm_read,perm_write,perm_create,perm_unlink
book_access,books,model_shop_book,base.group_user,1,1,1,1
"""
FRAMEWORK = "print('THE FRAMEWORK IS LOADED', flush=True)\n"
SCRIPT = """
from openupgradelib import openupgrade

@openupgrade.migrate()
def migrate(env, version):
    openupgrade.logged_query(env.cr, "update shop_book set name = 'Iliad'")
"""
RAISES = "def migrate(cr, version):\n    raise ValueError('no such book')\n"


def shop(project: Project, version: str, model: str = MODEL, migration: str = "") -> None:
    """A module of the project's own, with a model and a menu."""
    folder = project.module("shop", ["base"])
    manifest = folder / "__manifest__.py"
    manifest.write_text(
        manifest.read_text()
        .replace("19.0.1.0.0", version)
        .replace("}", ", 'data': ['ir.model.access.csv', 'views.xml']}")
    )
    (folder / "__init__.py").write_text("from . import models\n")
    (folder / "models.py").write_text(model)
    (folder / "views.xml").write_text(VIEWS)
    (folder / "ir.model.access.csv").write_text(ACCESS)
    if migration:
        (folder / "migrations" / version).mkdir(parents=True)
        (folder / "migrations" / version / "post-migrate.py").write_text(migration)


@dataclass(frozen=True)
class Production:
    """A database ``prod`` with the older release, and its proven backup."""

    bench: Bench
    volumes: dict[Path, str]
    secrets: Path
    cache: Path
    address: str
    older: Path
    """the code of that release"""

    def run(self, *words: str, source: Path | None = None, **env: str) -> Done:
        return self.bench.run(*words, source=source, volumes=self.volumes, secrets=self.secrets, cache=self.cache,
                              env={"PGHOST": "prod", "OPS_PROJECT": "acme", **env})  # fmt: skip

    def rehearse(self, project: Project, *flags: str, **env: str) -> Done:
        return self.run("upgrade", "--database", "prod", *flags, source=project.folder, **env)


@pytest.fixture(scope="module")
def production(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Production:
    bench.database("prod")
    folder = tmp_path_factory.mktemp("production")
    older = Project(folder / "project", downloaded(Path(__file__).with_name("addons-older.txt")))
    older.add("partner_stage")
    shop(older, "19.0.1.0.0")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "restic_password").write_text("a long password of the tests")
    own(folder / "secrets", bench)
    data, backups = writable(folder / "data"), writable(folder / "backups")
    odoo = ("run", "--rm", "--network", bench.name, "-e", "PGHOST=prod", "-e", "PGUSER=odoo", "-v", f"{data}:/data",
            "-v", f"{older.folder}:/src:ro", "--entrypoint")  # fmt: skip
    docker(*odoo, "python", bench.image, "/usr/bin/odoo", "-d", "prod", "-i", "partner_stage,shop",
           "--addons-path", "/src", "--data-dir", "/data", "--stop-after-init", "--no-http",
           "--log-level=warn")  # fmt: skip
    docker(*odoo, "click-odoo-update", bench.image, "-d", "prod", "--addons-path", "/src", "--only-compute-hashes")
    bench.sql("insert into shop_book (name) values ('Odyssey')", "prod", alias="prod")
    address = docker("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{bench.name}").IPAddress}}}}',
                     f"{bench.name}-prod").strip()  # fmt: skip
    volumes = {data: "/data:ro", backups: "/backups", addons_of("19"): "/wheels:ro"}
    made = Production(bench, volumes, folder / "secrets", writable(folder / "cache"), address, older.folder)
    (data / "filestore" / "prod").mkdir(parents=True, exist_ok=True)
    done = made.run("backup", "--database", "prod", "--filestore", "/data/filestore/prod", source=older.folder)
    assert done.code == 0, done.output
    return made


def report(done: Done) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((done.artifacts / "upgrade.json").read_text())
    return loaded


def advisory(title: str, *modules: str, until: str = "19.0") -> dict[str, object]:
    return {"from_version": "19.0", "to_version": until, "severity": "high", "title": title, "description": None,
            "migration_guide": None, "affects_modules": modules}  # fmt: skip


def test_an_addon_is_migrated_on_the_copy_while_production_is_not_there(
    production: Production, project: Project
) -> None:
    project.add("partner_stage")
    shop(project, "19.0.1.0.0")
    told = [advisory("state", "partner_stage", "sale"), advisory("tax", "account"), advisory("all"),
            advisory("later", until="20.0")]  # fmt: skip
    place = (production.bench.name, f"{production.bench.name}-prod")
    docker("network", "disconnect", *place)
    try:
        done = production.rehearse(
            project, "--urls", "/web/health,/web/login", PGHOSTADDR=production.address,
            ODOO_ADVISORIES=json.dumps(told),
        )  # fmt: skip
    finally:
        docker("network", "connect", "--alias", "prod", *place)
    assert done.code == 0, done.output
    assert "partner_stage: renamed res_partner.state -> res_partner.stage_state." in done.output
    found = report(done)
    assert found["modules"] == {"partner_stage": ["19.0.1.1.0", "19.0.2.0.1"]}
    assert found["columns_gone"] == ["res_partner.state"]
    advisories = found["advisories"]
    assert isinstance(advisories, list)
    assert [(each["title"], each["modules"]) for each in advisories] == [("all", []), ("state", ["partner_stage"])]
    assert (found["from"], found["to"], found["urls_opened"], found["problems"]) == ("19.0", "19.0", 2, [])
    assert int(str(found["menus_opened"])) > 20
    assert done.summary.startswith("# Upgrade of prod from 19.0 to 19.0: no problem\n")
    assert "- high: state (partner_stage)\n" in done.summary
    version = "select latest_version from ir_module_module where name = 'partner_stage'"
    assert production.bench.sql(version, "prod", alias="prod") == "19.0.1.1.0"
    assert production.bench.sql("select datname from pg_database where datname like 'upgrade%'") == ""


def test_a_menu_that_no_longer_opens_is_the_first_line_of_the_summary(production: Production, project: Project) -> None:
    project.add("partner_stage")
    shop(project, "19.0.1.1.0", MODEL.replace("= 100", "= 100 // len(book.name.split('Odyssey')[0])"))
    done = production.rehearse(project, "--urls", "/no-such-page")
    assert done.code == 1, done.output
    assert done.summary.splitlines()[:2] == [
        "- **FAILED** menu Shop/Books: builtins.ZeroDivisionError: integer division or modulo by zero",
        "- **FAILED** URL /no-such-page: HTTP status 404",
    ]
    assert "ERROR: menu Shop/Books: builtins.ZeroDivisionError" in done.output


@pytest.mark.parametrize(
    ("version", "migration", "message"),
    [
        ("19.0.1.1.0", RAISES, "ERROR: update of upgrade_of_prod: click-odoo-update ended with exit code 1"),
        ("", "", "ERROR: module shop: it is installed in the database, but not in the code of this run"),
    ],
    ids=["migration-raises", "module-missing"],
)
def test_what_fails_in_the_migration_is_named(
    production: Production, project: Project, version: str, migration: str, message: str
) -> None:
    project.add("partner_stage")
    if version:
        shop(project, version, migration=migration)
    done = production.rehearse(project)
    assert done.code == 1
    assert message in done.output
    assert done.summary.startswith(f"- **FAILED** {message.removeprefix('ERROR: ')}")
    if migration:
        assert "ValueError: no such book" in done.output


def test_a_step_to_the_next_version_runs_its_scripts_and_hands_the_database_on(
    production: Production, project: Project
) -> None:
    """No two versions that follow each other are to be had here: the database of 19.0 has the versions of an 18.0."""
    sql = (
        "update ir_module_module set latest_version = '18' || substr(latest_version, 3) where name in ('base', 'shop')"
    )
    production.bench.sql("create database old template prod", alias="prod")
    production.bench.sql(sql, "old", alias="prod")
    filestore = ("--filestore", "/data/filestore/prod")
    done = production.run("backup", "--database", "old", *filestore, source=production.older)
    assert done.code == 0, done.output
    project.add("partner_stage")
    shop(project, "19.0.1.0.0", MODEL.replace("= 100", "= 100 // (book.name == 'Iliad')"))
    (project.module("openupgrade_framework", ["base"]) / "__init__.py").write_text(FRAMEWORK)
    scripts = project.module("openupgrade_scripts", ["base"]) / "scripts" / "shop" / "19.0.1.0.0"
    scripts.mkdir(parents=True)
    (scripts / "pre-migration.py").write_text(SCRIPT)
    (project.folder / "requirements.txt").write_text("openupgradelib==3.13.7\n")

    words = ("upgrade", "--database")
    hop = production.run(*words, "old", "--keep-as", "old_19", source=project.folder, **OFFLINE)
    assert hop.code == 0, hop.output
    assert "THE FRAMEWORK IS LOADED" in hop.output
    found = report(hop)
    assert (found["from"], found["to"], found["way"], found["kept_as"]) == ("18.0", "19.0", "OpenUpgrade", "old_19")
    assert found["modules"]["shop"] == ["18.0.1.0.0", "19.0.1.0.0"]  # type: ignore[index]

    then = production.run(*words, "old_19")  # with Odoo's own code alone, so it stops after the restore
    assert "ERROR: module partner_stage: it is installed in the database, but not in the code" in then.output
    assert production.bench.sql("select name from shop_book", "upgrade_of_old_19") == "Iliad"
    refused = production.run(*words, "old", "--keep-as", "old")
    assert (refused.code, "ERROR: --keep-as old: the next upgrade of old" in refused.output) == (1, True)
