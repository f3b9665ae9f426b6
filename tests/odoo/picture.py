"""``make demo-odoo ARGS=--picture``: a preview of the sample repository in Chromium, as a picture.

python -m tests.odoo.picture URL PASSWORD FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.console.screenshots import write
from tests.support.chromium import browser

WIDTH, HEIGHT = 1000, 420
PATIENCE = 120_000


async def main(url: str, password: str, file: Path) -> None:
    """Signs in as a person does, and opens the list of the sample's module with its demo data."""
    async with browser() as started:
        page = await started.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        await page.goto(f"{url}/web/login")
        await page.fill("input[name=login]", "admin")
        await page.fill("input[name=password]", password)
        await page.click("button[type=submit]")
        await page.click("text=Library")
        await page.wait_for_selector("td:has-text('don quixote')")
        await page.evaluate("document.fonts.ready")
        write(file, await page.screenshot())
    sys.stdout.write(f"wrote {file}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
