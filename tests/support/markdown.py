"""What the project's Markdown says: links, headings, and the files and commands that it names in code spans."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.docker import ROOT
from worker.cli.settings import Settings

_GENERATED = {".venv", ".demo", "build", "dist", "node_modules", ".git"}
_PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)+/?|[\w-]+\.(?:md|py|sh|sql|txt|ya?ml|toml)|Makefile|Dockerfile")
_TARGET = re.compile(r"make ([a-z-]+)(?: .*)?")
_FLAG = re.compile(r"(?:ops-worker (?:.* )?)?--([a-z-]+)(?:[ =].*)?")
_OBJECT = re.compile(r"(ops(?:_private)?\.\w+)(?:\(.*\))?")


def files() -> list[Path]:
    """Every Markdown file of the project."""
    found = ROOT.rglob("*.md")
    return sorted(path for path in found if not _GENERATED & set(path.relative_to(ROOT).parts))


@dataclass(frozen=True)
class Document:
    """A Markdown file, read as GitHub reads it."""

    path: Path

    @property
    def tokens(self) -> list[Token]:
        """Its blocks; what is inline hangs below them."""
        return MarkdownIt("commonmark").enable("table").parse(self.path.read_text(encoding="utf-8"))

    @property
    def links(self) -> list[str]:
        """Where its links and pictures lead."""
        inline = [child for token in self.tokens for child in token.children or []]
        targets = [token.attrs.get("href", token.attrs.get("src")) for token in inline]
        return [str(target) for target in targets if target is not None]

    @property
    def headings(self) -> list[str]:
        """The text of its headings, in order."""
        tokens = self.tokens
        return [_text(after) for token, after in pairwise(tokens) if token.type == "heading_open"]

    @property
    def anchors(self) -> set[str]:
        """What a link to one of its headings may say after ``#``."""
        seen: Counter[str] = Counter()
        found = set()
        for heading in self.headings:
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        return found

    def code(self, *, first_column: bool = True) -> list[str]:
        """Its code spans; without those of the first column of each table, where others are quoted."""
        found, column = [], 0
        for token in self.tokens:
            if token.type in ("tr_open", "table_close"):
                column = 0
            elif token.type in ("td_open", "th_open"):
                column += 1
            if first_column or column != 1:
                found += [child.content for child in token.children or [] if child.type == "code_inline"]
        return found

    def tables(self) -> list[list[list[str]]]:
        """Its tables: the cells of each row, headers included, as plain text."""
        found: list[list[list[str]]] = []
        tokens = self.tokens
        for token, after in pairwise(tokens):
            if token.type == "table_open":
                found.append([])
            elif token.type == "tr_open":
                found[-1].append([])
            elif token.type in ("td_open", "th_open"):
                found[-1][-1].append(_text(after))
        return found

    def table(self, header: str) -> list[list[str]]:
        """The rows below the one table whose first column has that header."""
        [rows] = [table for table in self.tables() if table[0][0] == header]
        return rows[1:]

    def blocks(self, language: str) -> list[str]:
        """Its code blocks in that language."""
        return [token.content for token in self.tokens if token.type == "fence" and token.info == language]


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [] if child.type in ("text", "code_inline"))


def broken_links(document: Document, root: Path = ROOT) -> list[str]:
    """Relative links of the document that lead nowhere, or out of ``root``. Other hosts are not asked."""
    return [link for link in document.links if not _leads_somewhere(document.path, urlsplit(link), root)]


def _leads_somewhere(path: Path, url: SplitResult, root: Path) -> bool:
    if url.scheme or url.netloc:
        return True
    target = (path.parent / unquote(url.path)).resolve() if url.path else path
    if not target.is_relative_to(root) or not target.exists():
        return False
    return not url.fragment or (target.suffix == ".md" and unquote(url.fragment) in Document(target).anchors)


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def missing(code: list[str]) -> list[str]:
    """Those code spans that name a file, a make target, a flag or a database object that does not exist."""
    catalog = (ROOT / "sql" / "catalog.txt").read_text()
    objects = set(re.findall(r"^(?:schema|table|function) ([\w.]+)", catalog, re.MULTILINE))
    objects |= set(re.findall(r"^(?:trigger|column|constraint|index) (\w+\.\w+)\.\w+", catalog, re.MULTILINE))
    scripts = "".join(path.read_text() for path in (ROOT / "scripts" / "odooops").iterdir())
    flags = {name.replace("_", "-") for name in Settings.model_fields} | set(re.findall(r"--([a-z-]+)", scripts))
    wrong = []
    for span in code:
        if target := _TARGET.fullmatch(span):
            known = target[1] in targets()
        elif flag := _FLAG.fullmatch(span):
            known = flag[1] in flags
        elif thing := _OBJECT.fullmatch(span):
            known = thing[1] in objects
        elif _PATH.fullmatch(span):
            known = any(ROOT.glob(span.rstrip("/")))
        else:
            continue
        if not known:
            wrong.append(span)
    return wrong
