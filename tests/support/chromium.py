"""Debian's Chromium, driven by playwright: this system's, else the package unpacked below ``build/``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from tests.support.debian import FOLDER, libraries, unpacked

FONTS = ("fonts-dejavu-core",)
_FONT_FOLDERS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir>
<alias><family>system-ui</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


@cache
def program() -> tuple[Path, dict[str, str | float | bool]]:
    """The browser, and the variables that it needs.

    Raises:
        PackageMissing: it is not installed, and apt cannot fetch it.
    """
    root = unpacked("chromium", "chromium-common", *FONTS, libraries=True)
    settings = FOLDER / "chromium-fonts.conf"
    text = _FONT_FOLDERS.format(fonts=root / "usr/share/fonts", cache=FOLDER / "chromium-fonts")
    part = settings.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(settings)  # several test processes write the same
    environ: dict[str, str | float | bool] = {
        **os.environ, "LD_LIBRARY_PATH": libraries(root), "FONTCONFIG_FILE": str(settings)
    }  # fmt: skip
    return root / "usr/lib/chromium/chromium", environ


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser without a window. Its sandbox needs a user who is not root, and the pages are our own."""
    path, environ = program()
    async with async_playwright() as driver:
        started = await driver.chromium.launch(
            executable_path=path, env=environ, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield started
        finally:
            await started.close()
