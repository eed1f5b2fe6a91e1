"""Judges a bill of materials by the tools that others read it with: CycloneDX's schema, and purl's parser."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from security.image_files import install

_VALIDATE = """
import json
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
text = sys.stdin.read()
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
if error:
    sys.exit(str(error))
for one in json.loads(text)["components"]:
    purl = PackageURL.from_string(one["purl"])
    if (purl.type, purl.name, purl.version) != ("pypi", one["name"], one["version"]):
        sys.exit(f"{one['purl']} is read as {purl}")
"""


@pytest.fixture(scope="module")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], None]:
    """Both, strictly."""
    tools = install(tmp_path_factory.mktemp("audit"), "audit")

    def check(document: Any) -> None:
        done = subprocess.run(
            [sys.executable, "-S", "-c", _VALIDATE], input=json.dumps(document), env={"PYTHONPATH": str(tools)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return check
