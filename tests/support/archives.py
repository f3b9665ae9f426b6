"""Archives of ``/artifacts`` as the engine would send them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Archive = Callable[[], AbstractContextManager[Iterator[bytes]]]


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    return member, content


FOLDER = entry("artifacts", tarfile.DIRTYPE)


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as made:
        for member, content in entries:
            made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def files(**contents: bytes) -> bytes:
    """A whole archive with these files."""
    return tar(FOLDER, *(entry(f"artifacts/{name}", content=content) for name, content in contents.items()))


def archive(data: bytes, *, piece: int = 65_536, then: Exception | None = None) -> Archive:
    """An archive that yields the data in pieces and then raises that error."""

    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield from (data[at : at + piece] for at in range(0, len(data), piece))
            if then is not None:
                raise then

        yield chunks()

    return opened
