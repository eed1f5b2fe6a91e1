"""What goes into the images: the locked requirements are enough for the operator, and nothing heavy is among them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chart.rendering import ROOT

OPERATOR_REQUIREMENTS = ROOT / "requirements" / "operator.txt"
DOCKERFILES = {"operator": ROOT / "operator" / "Dockerfile", "trainer": ROOT / "trainer-image" / "Dockerfile"}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile installs, by hash."""
    target = tmp_path_factory.mktemp("libraries")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes", f"--target={target}"]
    done = subprocess.run(
        [*command, f"--requirement={OPERATOR_REQUIREMENTS}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def test_the_operator_starts_with_its_locked_requirements_alone(libraries: Path) -> None:
    path = os.pathsep.join([str(ROOT / "operator"), str(libraries)])
    # -S: without the packages of this environment.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "finetune_operator"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "FINETUNE_TRAINER_IMAGE: Field required" in done.stderr


def test_the_operators_image_is_small(libraries: Path) -> None:
    size = sum(path.stat().st_size for path in libraries.rglob("*") if path.is_file())
    assert size < 100 * 2**20
    assert not [path.name for path in libraries.iterdir() if path.name in ("torch", "transformers", "numpy")]


def test_the_operators_versions_are_those_that_are_tested() -> None:
    def pins(path: Path) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", path.read_text(), re.MULTILINE))

    assert pins(OPERATOR_REQUIREMENTS)
    assert pins(OPERATOR_REQUIREMENTS) <= pins(ROOT / "requirements" / "dev.txt")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_do_not_run_as_root_and_install_by_hash(name: str) -> None:
    text = DOCKERFILES[name].read_text()
    assert "USER 65532:65532" in text
    installs = [line for line in re.split(r"(?<!\\)\n", text) if "pip install" in line]
    assert installs
    for line in installs:
        assert line.count("pip install") == line.count("--require-hashes")
    assert re.search(rf"^FROM code AS {name}$", text, re.MULTILINE)
    assert text.index("FROM code AS") == text.rindex("FROM "), "the shipped image is the last target"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_everything_copied_is_in_the_context(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    folders = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    sources = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILES[name].read_text(), re.MULTILINE)
    for source in " ".join(sources).split():
        assert source.partition("/")[0] in folders
        assert (ROOT / source).exists()
    # Builders would take it instead.
    assert not DOCKERFILES[name].with_name("Dockerfile.dockerignore").exists()


def make_images(folder: Path, there: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """What the script does where these programs are; they print how they are called."""
    for program in there:
        (folder / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (folder / program).chmod(0o755)
    for program in ("sed", "dirname"):
        (folder / program).symlink_to(
            f"/usr/bin/{program}" if Path(f"/usr/bin/{program}").exists() else f"/bin/{program}"
        )
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "images.sh")],
        env={"PATH": str(folder), "REGISTRY": "registry.example.com/ml", "TAG": "1", "TARGET": "code", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "platform"),
    [
        ({}, ""),
        ({"PUSH": "1"}, "linux/amd64"),
        ({"PUSH": "1", "PLATFORM": "linux/arm64"}, "linux/arm64"),
        ({"PLATFORM": "linux/arm64"}, "linux/arm64"),
    ],
)
def test_what_is_pushed_is_for_the_nodes_and_not_for_the_laptop(
    tmp_path: Path, variables: dict[str, str], platform: str
) -> None:
    done = make_images(tmp_path, ["podman"], **variables)
    assert done.returncode == 0, done.stderr
    builds = [line for line in done.stdout.splitlines() if " build " in line]
    given = [re.findall(r" --platform (\S+)", line) for line in builds]
    assert given == [[platform] if platform else []] * 2
    assert done.stderr.count(f"for {platform or 'this machine'}\n") == 2


def test_one_platform_is_built_at_a_time(tmp_path: Path) -> None:
    done = make_images(tmp_path, ["podman"], PLATFORM="linux/amd64,linux/arm64")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: PLATFORM=linux/amd64,linux/arm64 names several" in done.stderr


@pytest.mark.parametrize(("there", "used"), [(["podman", "buildah"], "podman"), (["buildah"], "buildah"), ([], "")])
def test_make_images_takes_what_is_there(tmp_path: Path, there: list[str], used: str) -> None:
    done = make_images(tmp_path, there, PUSH="1")
    if not used:
        assert done.returncode == 1
        assert "install one of them" in done.stderr
        return
    assert done.stdout.splitlines() == [
        f"{used} {line}"
        for name, file in (("operator", "operator/Dockerfile"), ("trainer", "trainer-image/Dockerfile"))
        for image in (f"registry.example.com/ml/finetune-{name}:1",)
        for line in (
            f"build --file {file} --tag {image} --platform linux/amd64 --target code .",
            f"push {image}",
        )
    ]
