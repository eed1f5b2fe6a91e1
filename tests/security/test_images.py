"""What the images are made of: pinned, by hash, listed in a bill of materials, under licences that go with ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from script_modules import load
from testbed.node_images import base_image
from testbed.node_machine import NodeUnavailableError

pytestmark = pytest.mark.security(25)

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {"operator": ROOT / "operator" / "Dockerfile", "trainer": ROOT / "trainer-image" / "Dockerfile"}
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
# Permissive, or like MPL-2.0 without a claim on what is only shipped beside them: they go with Apache-2.0.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "LLVM-exception",
    "MIT", "MPL-2.0", "PSF-2.0", "Zlib", "BSD", "BSD License",
}  # fmt: skip
# The CUDA libraries of PyTorch's Linux wheels: proprietary, and redistributable as parts of an application.
NVIDIA = re.compile(r"^(nvidia-[a-z0-9-]+|cuda-toolkit)$")
NVIDIA_LICENCES = {"LicenseRef-NVIDIA-Proprietary", "NVIDIA Proprietary Software", "not stated"}
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(error and str(error))
"""

sbom = load("sbom")


def install(target: Path, lock: Path) -> Path:
    """What a lock has for this machine, by hash."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes", f"--target={target}"]
    done = subprocess.run([*command, f"--requirement={lock}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def operator_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the operator's Dockerfile installs."""
    return install(tmp_path_factory.mktemp("operator"), ROOT / "requirements" / "operator.txt")


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


@pytest.fixture(scope="module")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], None]:
    """CycloneDX's own JSON schema, strictly."""
    tools = install(tmp_path_factory.mktemp("audit"), ROOT / "requirements" / "audit.txt")

    def check(document: Any) -> None:
        done = subprocess.run(
            [sys.executable, "-S", "-c", VALIDATE], input=json.dumps(document), env={"PYTHONPATH": str(tools)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return check


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_of(name: str) -> list[Any]:
    return list(sbom.read_lock((ROOT / "requirements" / f"{name}.txt").read_text()))


def on_linux(name: str) -> set[str]:
    """The packages that a lock has for the images: Linux, and the Python of the base."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "requirements" / f"{name}.txt").read_text())
    lines = [line.partition(" --hash")[0] for line in text.splitlines() if "==" in line]
    image = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    image |= {"python_version": "3.13", "python_full_version": "3.13.14", "implementation_name": "cpython"}
    found = [Requirement(line.strip()) for line in lines]
    return {normal(one.name) for one in found if one.marker is None or one.marker.evaluate(image)}


def document(name: str, libraries: Path) -> Any:
    return sbom.make_sbom(f"finetune-{name}", "1.2.3", lock_of(name), libraries)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
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


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Buildah with a storage of its own."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("buildah: needs buildah and root")
    storage = [f"--root={tmp_path}/root", f"--runroot={tmp_path}/run"]

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(["buildah", *storage, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout + (done.stderr if code else "")

    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_operators_image_is_built_by_a_real_tool_and_lists_itself(
    tmp_path: Path, buildah: Callable[..., str]
) -> None:
    """On a base of this machine's own, as no registry is asked; the libraries come from the index, by hash."""
    try:
        base = base_image()
    except NodeUnavailableError as error:
        pytest.skip(f"a base image cannot be made: {error}")
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    with_pip = tmp_path / "Dockerfile"
    with_pip.write_text(
        "ARG BASE\nFROM ${BASE}\nCOPY pip /usr/lib/python3/dist-packages/pip\n"
        f"ENV PIP_CERT={certificates} SSL_CERT_FILE={certificates}\n"
    )
    build = ("build", "--isolation=chroot", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro")
    purelib = sysconfig.get_path("purelib")
    buildah(*build, "--squash", f"--file={with_pip}", f"--build-arg=BASE={base}", "--tag=localhost/base:test", purelib)
    buildah(
        *build, f"--file={DOCKERFILES['operator']}", "--build-arg=BASE=localhost/base:test",
        "--tag=localhost/operator:test", str(ROOT),
    )  # fmt: skip
    about = json.loads(buildah("inspect", "--type=image", "localhost/operator:test"))["OCIv1"]["config"]
    assert about["User"] == "65532:65532"
    assert not [line for line in about["Env"] if re.search(r"TOKEN|SECRET|PASSWORD", line)]
    container = buildah("from", "localhost/operator:test").strip()
    inside = ("run", "--isolation=chroot", container)
    bill = json.loads(buildah(*inside, "cat", "/opt/finetune/sbom.cdx.json"))
    assert {one["name"] for one in bill["components"]} == on_linux("operator")
    assert buildah(*inside, "id", "-u").strip() == "65532"
    assert "FINETUNE_TRAINER_IMAGE: Field required" in buildah(*inside, "python", "-m", "finetune_operator", code=2)
