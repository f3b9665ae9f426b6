"""``make screenshots``: the console with example runs, in Chromium, as docs/console-*.png."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import asyncpg
from PIL import Image

from tests.console.scene import PHONE, console, visitor
from tests.console.world import fill
from tests.support.chromium import browser
from tests.support.docker import ROOT
from tests.support.postgres import Cluster

MOST_BYTES = 150_000
TIMES = """
    update ops.runs set created_at = at, claimed_at = case when claimed_at is not null then at + interval '2 s' end,
        started_at = case when started_at is not null then at + interval '3 s' end,
        finished_at = case when finished_at is not null then at + interval '3 s' + took end
    from (select r.id as run, now() - (n.newest - r.run_number) * interval '34 minutes' - interval '70 s' as at,
              (41 + r.run_number * 37 % 190) * interval '1 s' as took
          from ops.runs as r, (select max(run_number) as newest from ops.runs) as n) as t
    where id = run
"""


async def main() -> None:
    with Cluster() as cluster, cluster.database(cluster.template()) as name:
        db = await asyncpg.connect(cluster.url(name))
        await fill(db)
        await db.execute(TIMES)
        red = await db.fetchval("select max(run_number) from ops.runs where status = 'failed' and errors > 0")
        async with console(cluster.url(name)) as address, browser() as started:
            for picture, path, size, scheme in (
                ("builds", "/", (1240, 480), "light"), ("run", f"/runs/library/{red}#L9", (1240, 940), "light"),
                ("dark", f"/runs/library/{red}#L9", (1240, 940), "dark"), ("phone", "/", PHONE, "dark"),
            ):  # fmt: skip
                async with visitor(started, address, size, color_scheme=scheme, reduced_motion="reduce") as it:
                    await it.open(path)
                    if path != "/":
                        await it.line("L9")
                        await it.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                    write(ROOT / "docs" / f"console-{picture}.png", await it.page.screenshot())
        await db.close()


def write(path: Path, png: bytes) -> None:
    """Writes the picture as small as it can be with all its colours."""
    Image.open(io.BytesIO(png)).convert("RGB").save(path, optimize=True)
    assert path.stat().st_size < MOST_BYTES, path  # larger ones are not for a repository


if __name__ == "__main__":
    asyncio.run(main())
