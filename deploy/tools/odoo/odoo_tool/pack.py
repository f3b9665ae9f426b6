"""Archives of which the same content has the same bytes: sorted names, one time, no owner, no compression time."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .cache import files_below
from .source import EPOCH
from .steps import Failure


def pack(folders: Mapping[str, Path], path: Path) -> None:
    """Writes the folders, by the names that they get, as a ``tar.gz``.

    Raises:
        Failure: a link leaves its folder
    """
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=EPOCH) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, folder in sorted(folders.items()):
            for source in files_below(folder):
                _add(archive, source, folder, f"{name}/{source.relative_to(folder)}")


def _add(archive: tarfile.TarFile, source: Path, folder: Path, name: str) -> None:
    if source.is_symlink() and folder.resolve() not in source.resolve().parents:
        raise Failure(f"link {name}: it leads out of its add-on", "replace it with the file itself")
    info = archive.gettarinfo(source, arcname=name)
    executable = bool(info.mode & 0o100)
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = EPOCH
    info.mode = 0o755 if executable else 0o644
    if info.islnk():  # two names of one file: a copy, since the other may not be unpacked
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", source.stat().st_size
    if info.isreg():
        with source.open("rb") as content:
            archive.addfile(info, content)
    else:
        archive.addfile(info)
