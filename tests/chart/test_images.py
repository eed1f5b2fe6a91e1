"""What goes into the images: the locked requirements are enough for the operator, and nothing heavy is among them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from security.image_files import DOCKERFILES, ROOT, install

OPERATOR_REQUIREMENTS = ROOT / "requirements" / "operator.txt"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile installs, by hash."""
    return install(tmp_path_factory.mktemp("libraries"), "operator")


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
        assert len(re.findall(r"pip (?:install|download)", line)) == line.count("--require-hashes")
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


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What the script reads of the repository; no git."""
    folder = tmp_path / "sources"
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def make_images(sources: Path, there: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """What the script does where these programs are; they print how they are called."""
    folder = sources.parent / "bin"
    folder.mkdir(exist_ok=True)
    for program in there:
        (folder / program).write_text(f'#!/bin/sh\necho {program} "$@"\n')
        (folder / program).chmod(0o755)
    for program in ("sed", "dirname", "git"):
        found = shutil.which(program)
        if found is not None and not (folder / program).exists():
            (folder / program).symlink_to(found)
    return subprocess.run(
        ["/bin/sh", str(sources / "scripts" / "images.sh")],
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
    sources: Path, variables: dict[str, str], platform: str
) -> None:
    done = make_images(sources, ["podman"], **variables)
    assert done.returncode == 0, done.stderr
    builds = [line for line in done.stdout.splitlines() if " build " in line]
    given = [re.findall(r" --platform (\S+)", line) for line in builds]
    assert given == [[platform] if platform else []] * 2
    assert done.stderr.count(f"for {platform or 'this machine'}\n") == 2


def test_one_platform_is_built_at_a_time(sources: Path) -> None:
    done = make_images(sources, ["podman"], PLATFORM="linux/amd64,linux/arm64")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: PLATFORM=linux/amd64,linux/arm64 names several" in done.stderr


@pytest.mark.parametrize(("there", "used"), [(["podman", "buildah"], "podman"), (["buildah"], "buildah"), ([], "")])
def test_make_images_takes_what_is_there(sources: Path, there: list[str], used: str) -> None:
    done = make_images(sources, there, PUSH="1")
    if not used:
        assert done.returncode == 1
        assert "install one of them" in done.stderr
        return
    assert done.stdout.splitlines() == [
        f"{used} {line}"
        for name, file in (("operator", "operator/Dockerfile"), ("trainer", "trainer-image/Dockerfile"))
        for image in (f"registry.example.com/ml/finetune-{name}:1",)
        for line in (
            f"build --file {file} --tag {image} --platform linux/amd64 --target code"
            f" --label org.opencontainers.image.version={metadata.version('finetune-operator')} .",
            f"push {image}",
        )
    ]


def test_images_say_what_they_were_built_from(sources: Path) -> None:
    def git(*arguments: str) -> str:
        name = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *name, *arguments], cwd=sources, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=First")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    for revision in (commit, f"{commit}-dirty"):
        done = make_images(sources, ["podman"])
        assert re.findall(r"image\.revision=(\S+)", done.stdout) == [revision] * 2, done.stderr
        (sources / "pyproject.toml").write_text('version = "9"\n')


def lock_for_cpus(sources: Path, version: str) -> None:
    """What `make lock-cpu` writes."""
    (sources / "requirements" / "cpu" / "torch.txt").write_text(f"torch=={version} \\\n    --hash=sha256:{'0' * 64}\n")


def test_the_cpu_image_has_a_tag_of_its_own_and_the_operators_is_the_same(sources: Path) -> None:
    version = metadata.version("torch").partition("+")[0]
    lock_for_cpus(sources, f"{version}+cpu")
    given = {"TORCH": "cpu", "TORCH_INDEX": "https://mirror.example.com/whl/cpu"}
    done = make_images(sources, ["podman"], PUSH="1", **given)
    assert done.returncode == 0, done.stderr
    operator, _, trainer, push = done.stdout.splitlines()
    assert "--tag registry.example.com/ml/finetune-operator:1 " in operator
    assert "TORCH" not in operator
    assert "--tag registry.example.com/ml/finetune-trainer:1-cpu " in trainer
    assert "--build-arg TORCH=cpu --build-arg TORCH_INDEX=https://mirror.example.com/whl/cpu ." in trainer
    assert push == "podman push registry.example.com/ml/finetune-trainer:1-cpu"


@pytest.mark.parametrize("locked", ["", "2.1.0+cpu", "2.1.0"])
def test_a_cpu_image_needs_a_lock_of_the_version_that_is_tested(sources: Path, locked: str) -> None:
    if locked:
        lock_for_cpus(sources, locked)
    else:
        (sources / "requirements" / "cpu" / "torch.txt").unlink(missing_ok=True)
    done = make_images(sources, ["podman"], TORCH="cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: requirements/cpu/torch.txt does not lock torch ")
    assert done.stderr.endswith("make lock-cpu\n")


def test_another_build_of_pytorch_is_refused(sources: Path) -> None:
    done = make_images(sources, ["podman"], TORCH="rocm")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: TORCH=rocm is none of PyTorch's builds here; it is cuda or cpu\n"
