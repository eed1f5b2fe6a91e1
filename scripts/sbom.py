"""Writes an image's software bill of materials, CycloneDX 1.6: what is installed in it, and the files it was locked to.

Only Python's own library is needed, because it runs while the image is built:

    python sbom.py finetune-trainer --project pyproject.toml --lock requirements/trainer.txt --libraries /opt/libraries
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# What packages without an SPDX expression say of their licence, in SPDX's words where they can be told apart.
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD-2-Clause": "BSD-2-Clause",
    "BSD-3-Clause": "BSD-3-Clause",
    "ISC": "ISC",
    "ISC License": "ISC",
    "MIT": "MIT",
    "MIT License": "MIT",
    "MPL-2.0": "MPL-2.0",
    "MPL-2.0 AND MIT": "MPL-2.0 AND MIT",
    "PSF-2.0": "PSF-2.0",
}
_TORCH_INDEX = "https://download.pytorch.org/whl/"
_OURS = uuid.UUID("6f3f3a4e-2f0b-5c39-9d7e-3a5b9a6b6a01")


class NotAsLocked(Exception):
    """What is installed is not what the lock says; the message names it."""


@dataclass(frozen=True, slots=True)
class Locked:
    """One version of a package, and the SHA-256 of each file that it may be installed from."""

    name: str
    version: str
    hashes: tuple[str, ...]


def read_lock(text: str) -> Iterator[Locked]:
    """The entries of a requirements file with hashes. Raises NotAsLocked for a line that pins nothing."""
    for entry in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not entry.strip() or entry.startswith("#"):
            continue
        pinned, hashes = _REQUIREMENT.match(entry), tuple(_HASH.findall(entry))
        if pinned is None or not hashes:
            raise NotAsLocked(f"{entry[:80]!r} has no exact version with hashes")
        yield Locked(_normal(pinned[1]), pinned[2], hashes)


def make_sbom(name: str, version: str, lock: list[Locked], libraries: Path) -> dict[str, Any]:
    """The CycloneDX document of an image. Raises NotAsLocked when something is installed that is not in the lock."""
    locked = {(entry.name, entry.version): entry for entry in lock}
    components = []
    for found in sorted(metadata.distributions(path=[str(libraries)]), key=lambda one: _normal(one.name)):
        entry = locked.get((_normal(found.name), found.version))
        if entry is None:
            raise NotAsLocked(f"{found.name} {found.version} is installed, but it is not in the lock")
        components.append(_component(entry, found))
    return _document(name, version, components)


def _document(name: str, version: str, components: list[dict[str, Any]]) -> dict[str, Any]:
    reference = f"{name}@{version}"
    text = json.dumps([reference, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_OURS, text)}",  # the same for the same content
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": reference,
                "name": name,
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _component(entry: Locked, found: metadata.Distribution) -> dict[str, Any]:
    purl, page = _origin(entry)
    hashes = [{"alg": "SHA-256", "content": one} for one in entry.hashes]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": entry.name,
        "version": entry.version,
        "purl": purl,
        "licenses": [_licence(found)],
        # One of these files was installed: that of the image's platform.
        "externalReferences": [{"type": "distribution", "url": page, "hashes": hashes}],
    }


def _origin(entry: Locked) -> tuple[str, str]:
    """A package's purl, and its page on the index that publishes it.

    PyPI takes no local version (PEP 440). What has one, such as 2.15.0+cpu, is PyTorch's, whose index for it is named
    like it; that is also said of a copy from a mirror.
    """
    purl = f"pkg:pypi/{entry.name}@{quote(entry.version)}"
    _, _, build = entry.version.partition("+")
    if not build:
        return purl, f"https://pypi.org/project/{entry.name}/{entry.version}/"
    index = _TORCH_INDEX + build
    return f"{purl}?repository_url={quote(index, safe=':')}", f"{index}/{entry.name}/"


def _licence(found: metadata.Distribution) -> dict[str, Any]:
    """A package's licence by its own metadata: an SPDX expression where it says one, else its words."""
    about = found.metadata
    if expression := about.get("License-Expression"):
        return {"expression": expression}
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if "License ::" in line]
    said = [(about.get("License") or "").strip().partition("\n")[0], *classifiers]
    if spdx := next((_SPDX[words] for words in said if words in _SPDX), None):
        return {"expression": spdx}
    return {"license": {"name": next((words for words in said if words), "not stated")}}


def _normal(name: str) -> str:
    """A name as the index has it: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Print the document; returns 1 when the image is not as locked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the image's name")
    parser.add_argument("--project", required=True, type=Path, help="the pyproject.toml that has its version")
    parser.add_argument("--lock", required=True, type=Path, help="the requirements it was installed from")
    parser.add_argument("--libraries", required=True, type=Path, help="the folder they were installed into")
    options = parser.parse_args()
    version = tomllib.loads(options.project.read_text("utf-8"))["project"]["version"]
    try:
        lock = list(read_lock(options.lock.read_text("utf-8")))
        document = make_sbom(options.name, version, lock, options.libraries)
    except NotAsLocked as error:
        print(f"error: {options.lock}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
