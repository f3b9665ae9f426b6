"""Whether a running Odoo can be used: its login page, the action of each menu as a browser opens it, and given URLs."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar
from typing import Any
from xml.etree import ElementTree as ET

from . import database
from .steps import Failure, step

ADMIN = "select res_id from ir_model_data where module = 'base' and name = 'user_admin'"
LISTS = ("list", "tree")
ROWS = 5  # that are read of each model
TIMEOUT = 300


class Refused(Exception):
    """Odoo answered with an error."""


@dataclass(frozen=True)
class Checked:
    """What was opened, what is not of a kind that can be opened, and what failed: a line for each."""

    menus: int
    not_opened: int
    urls: int
    problems: Sequence[str]
    seconds: float


class Browser:
    """A session of one user."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def _open(self, request: str | urllib.request.Request) -> bytes:
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            raise Refused(f"HTTP status {error.code}") from error
        except OSError as error:
            raise Refused(str(error)) from error

    def get(self, path: str) -> None:
        """Opens a page. Raises ``Refused`` for a status that is an error."""
        self._open(self.url + path)

    def call(self, path: str, **params: object) -> Any:
        """The result of a JSON-RPC call."""
        body = json.dumps({"jsonrpc": "2.0", "method": "call", "params": params}).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        answer = json.loads(self._open(request))
        if "error" in answer:
            data = answer["error"].get("data", {})
            words = (data.get("name", ""), data.get("message") or answer["error"].get("message", ""))
            raise Refused(": ".join(filter(None, words)))
        return answer.get("result")

    def method(self, model: str, name: str, *args: object, **kwargs: object) -> Any:
        """What a method of a model returns."""
        return self.call(f"/web/dataset/call_kw/{model}/{name}", model=model, method=name, args=args, kwargs=kwargs)


def check(url: str, name: str, major: int, urls: Sequence[str]) -> Checked:
    """Signs in as the administrator, whose password is changed, and opens everything.

    Raises:
        Failure: the sign-in is refused
    """
    began = time.monotonic()
    browser = Browser(url)
    sign_in(browser, name)
    problems: list[str] = []
    actions = menus(browser, problems)
    windows = {menu: number for menu, (kind, number) in actions.items() if kind == "ir.actions.act_window"}
    step(f"checks: opening {len(windows)} menus")
    for menu, number in windows.items():
        problems += refusal(f"menu {menu}", partial(open_action, browser, number, major))
    for path in urls:
        problems += refusal(f"URL {path}", partial(browser.get, path))
    return Checked(len(windows), len(actions) - len(windows), len(urls), problems, time.monotonic() - began)


def refusal(thing: str, opening: Callable[[], object]) -> list[str]:
    """Opens something; returns a line if it is refused, nothing otherwise."""
    try:
        opening()
    except Refused as error:
        return [f"{thing}: {error}"]
    return []


def sign_in(browser: Browser, name: str) -> None:
    password = secrets.token_hex(16)
    user = int(database.query(ADMIN, name))
    columns = database.query("select column_name from information_schema.columns where table_name = 'res_users'", name)
    second_factor = ", totp_secret = null" if "totp_secret" in columns.split() else ""
    update = f"update res_users set active = true, password = '{password}'{second_factor} where id = {user}"  # noqa: S608
    database.query(update, name)
    login = database.query(f"select login from res_users where id = {user}", name)  # noqa: S608 - a number
    step(f"checks: signing in as {login}")
    try:
        signed_in = browser.call("/web/session/authenticate", db=name, login=login, password=password)
    except Refused as error:
        raise Failure(f"sign-in as {login}: {error}", "see Odoo's messages above") from error
    if not signed_in or not signed_in.get("uid"):
        raise Failure(f"sign-in as {login}: refused", "see Odoo's messages above")


def menus(browser: Browser, problems: list[str]) -> dict[str, tuple[str, int]]:
    """The menus that have an action: its kind and its number, by the menu's full name."""
    try:
        browser.method("ir.ui.menu", "load_menus", False)
    except Refused as error:
        problems.append(f"all menus: {error}")
    found = browser.method(
        "ir.ui.menu", "search_read", [["action", "!=", False]], fields=["complete_name", "action"], context={}
    )
    actions = {}
    for menu in found:
        kind, _, number = str(menu["action"]).partition(",")
        actions[str(menu["complete_name"])] = (kind, int(number))
    return actions


def open_action(browser: Browser, number: int, major: int) -> None:
    """Does what the web client does for a menu: loads the action, its views, and the first rows or the defaults."""
    action = browser.call("/web/action/load", action_id=number)
    if not action:
        raise Refused(f"there is no action {number}")
    model = str(action["res_model"])
    views = [*action["views"], [(action.get("search_view_id") or [False])[0], "search"]]
    method = "get_views" if major >= 16 else "load_views"  # noqa: PLR2004
    loaded = browser.method(model, method, views=views, options={"load_filters": True, "toolbar": True})
    arches = archs(loaded)
    lists = [arches[kind] for kind in LISTS if kind in arches]
    if lists:
        browser.method(model, "search_read", [], fields=names(lists[0]), limit=ROWS)
    elif {kind for _, kind in action["views"]} == {"form"}:
        browser.method(model, "default_get", names(arches["form"]))
    else:
        browser.method(model, "search_read", [], fields=["display_name"], limit=ROWS)


def archs(loaded: Mapping[str, Any]) -> dict[str, ET.Element]:
    """The view of each kind."""
    views: Mapping[str, Any] = loaded.get("views") or loaded["fields_views"]
    return {kind: ET.fromstring(view["arch"]) for kind, view in views.items()}  # noqa: S314 - Odoo's own, of the copy


def names(view: ET.Element) -> list[str]:
    """The fields of a view, without those of views within it."""

    def below(parent: ET.Element) -> Iterable[str]:
        for each in parent:
            if each.tag == "field":
                yield each.attrib["name"]
            else:
                yield from below(each)

    return list(dict.fromkeys(below(view)))
