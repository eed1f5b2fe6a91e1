"""What the images are made of: pinned, by hash, listed in a bill of materials, under licences that go with ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from script_modules import load
from security.image_files import DOCKERFILES, LOCKS, ROOT, install, lock_of, normal, on_linux

pytest_plugins = ["security.image_bills"]
pytestmark = pytest.mark.security(25)

# Permissive, or like MPL-2.0 without a claim on what is only shipped beside them: they go with Apache-2.0.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "LLVM-exception",
    "MIT", "MPL-2.0", "PSF-2.0", "Zlib", "BSD", "BSD License",
}  # fmt: skip
# The CUDA libraries of PyTorch's Linux wheels: proprietary, and redistributable as parts of an application.
NVIDIA = re.compile(r"^(nvidia-[a-z0-9-]+|cuda-toolkit)$")
NVIDIA_LICENCES = {"LicenseRef-NVIDIA-Proprietary", "NVIDIA Proprietary Software", "not stated"}
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")

sbom = load("sbom")


@pytest.fixture(scope="module")
def operator_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator's Dockerfile installs."""
    return install(tmp_path_factory.mktemp("operator"), "operator")


@pytest.fixture(scope="module")
def trainer_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metadata of what the trainer's Dockerfile installs; the libraries themselves are gigabytes."""
    folder = tmp_path_factory.mktemp("trainer")
    locked = {(entry.name, entry.version) for entry in lock_of("trainer")}
    for path in Path(sysconfig.get_path("purelib")).glob("*.dist-info"):
        found = metadata.Distribution.at(path)
        if (normal(found.name), found.version) in locked:
            shutil.copytree(path, folder / path.name)
    return folder


def document(name: str, libraries: Path) -> Any:
    return sbom.make_sbom(f"finetune-{name}", "1.2.3", lock_of(name), libraries)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_locked_requirement_has_one_version_and_hashes(path: Path) -> None:
    text = path.read_text()
    entries = list(sbom.read_lock(text))
    assert entries
    assert len(entries) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    assert not re.search(r"://|^-|^\s+-(?!-hash=sha256:)", text, re.MULTILINE), "an index, a link or an option"


@pytest.mark.parametrize("line", ["requests", "requests>=2 --hash=sha256:" + "0" * 64, "requests==2.0", "-r other.txt"])
def test_a_requirement_without_version_or_hash_is_refused(line: str) -> None:
    with pytest.raises(sbom.NotAsLocked):
        list(sbom.read_lock(f"{line}\n"))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_base_is_pinned_by_digest_and_the_user_is_not_root(name: str) -> None:
    text = DOCKERFILES[name].read_text()
    [base] = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert DIGEST.search(base)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert {source for source, _ in stages} == {"${BASE}", "code"}
    assert text.count("\nFROM ") == len(stages)
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users == ["65532:65532"]
    for word in ("ADD ", "curl", "wget", "apt-get", "--mount=type=secret", "ARG TOKEN", "chmod 777", "sudo"):
        assert word not in text


def test_nothing_is_pushed_that_was_built_on_a_tag(tmp_path: Path) -> None:
    (tmp_path / "podman").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "podman").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TARGET": "code", "BASE": "docker.io/library/python:3.13"}
    command = ["/bin/sh", str(ROOT / "scripts" / "images.sh")]
    for push, code in (("0", 0), ("1", 1)):
        done = subprocess.run(command, env=environment | {"PUSH": push}, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "@sha256:DIGEST" in done.stderr
    assert done.stdout == ""


def test_the_bill_of_the_operator_lists_what_is_installed(
    operator_libraries: Path, validate: Callable[[Any], None]
) -> None:
    bill = document("operator", operator_libraries)
    validate(bill)
    folders = {path.name.partition("-")[0].lower() for path in operator_libraries.glob("*.dist-info")}
    assert {one["name"].replace("-", "_") for one in bill["components"]} == {name.replace(".", "_") for name in folders}
    assert {one["name"] for one in bill["components"]} == on_linux("operator")
    [kopf] = [one for one in bill["components"] if one["name"] == "kopf"]
    assert kopf["purl"] == f"pkg:pypi/kopf@{metadata.version('kopf')}"
    assert kopf["licenses"] == [{"expression": "MIT"}]
    locked = next(entry for entry in lock_of("operator") if entry.name == "kopf")
    assert [one["content"] for one in kopf["externalReferences"][0]["hashes"]] == list(locked.hashes)
    assert bill == document("operator", operator_libraries), "the same content makes the same document"


def test_the_bill_of_the_trainer_is_valid(trainer_libraries: Path, validate: Callable[[Any], None]) -> None:
    bill = document("trainer", trainer_libraries)
    validate(bill)
    assert {"torch", "transformers", "safetensors", "nvidia-cudnn-cu13"} <= {one["name"] for one in bill["components"]}


def test_the_schema_refuses_what_is_no_bill(operator_libraries: Path, validate: Callable[[Any], None]) -> None:
    bill = document("operator", operator_libraries)
    with pytest.raises(AssertionError, match="type"):
        validate(bill | {"components": [{"name": "x"}], "dependencies": []})


def test_what_is_not_locked_is_not_listed_but_refused(tmp_path: Path) -> None:
    (tmp_path / "stranger-1.0.dist-info").mkdir()
    (tmp_path / "stranger-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n"
    )
    command = [sys.executable, str(ROOT / "scripts" / "sbom.py"), "finetune-operator", f"--libraries={tmp_path}"]
    command += [f"--project={ROOT / 'pyproject.toml'}", f"--lock={ROOT / 'requirements' / 'operator.txt'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "stranger 1.0 is installed, but it is not in the lock" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_licence_goes_with_apache_2(request: pytest.FixtureRequest, name: str) -> None:
    bill = document(name, request.getfixturevalue(f"{name}_libraries"))
    listed = {one["name"] for one in bill["components"]}
    assert on_linux(name) <= listed, "packages whose licence could not be looked at"
    for one in bill["components"]:
        [licence] = one["licenses"]
        said = licence.get("expression") or licence["license"]["name"]
        if NVIDIA.match(one["name"]):
            assert said in NVIDIA_LICENCES, one["purl"]
        else:
            words = {said} if said in ALLOWED else set(re.split(r"[()\s]+|\b(?:AND|OR|WITH)\b", said)) - {"", None}
            assert words <= ALLOWED, f"{one['purl']}: {said}"
