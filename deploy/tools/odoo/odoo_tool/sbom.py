"""The list of everything in a build, as CycloneDX 1.6; the library of CycloneDX writes it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from .cache import file_digest


@dataclass(frozen=True)
class Part:
    """A component: ``kind`` is that of its package URL."""

    kind: str
    name: str
    version: str
    namespace: str | None = None
    sha256: str | None = None


def write(path: Path, root: Part, parts: Iterable[Part], key: str, time: int) -> None:
    """Writes the file. Key and time of the build, and nothing of this moment, decide its bytes."""
    bom = Bom()
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, key)
    bom.metadata.timestamp = datetime.fromtimestamp(time, tz=timezone.utc)
    product = _component(root, ComponentType.APPLICATION)
    bom.metadata.component = product
    components = [_component(part, ComponentType.LIBRARY) for part in parts]
    for component in components:
        bom.components.add(component)
    bom.register_dependency(product, components)
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


def _component(part: Part, kind: ComponentType) -> Component:
    url = PackageURL(type=part.kind, namespace=part.namespace, name=part.name, version=part.version)
    return Component(
        name=part.name,
        version=part.version,
        type=kind,
        purl=url,
        bom_ref=url.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else [],
    )


def wheel_part(path: Path) -> Part:
    """A wheel: its name and version are the first two words of the file's name."""
    name, version = path.name.split("-")[:2]
    return Part("pypi", name, version, sha256=file_digest(path))


def debian_parts(installed: Mapping[str, str], distribution: str) -> list[Part]:
    return [Part("deb", name, version, distribution) for name, version in sorted(installed.items())]
