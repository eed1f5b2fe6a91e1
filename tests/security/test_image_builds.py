"""The images as a real tool builds them: their user, their contents, and what a checkout or a builder may change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from security.image_files import CUDA, DOCKERFILES, ROOT, lock_of, on_linux
from torch_index import serving

pytest_plugins = ["security.image_builds"]
pytestmark = [pytest.mark.security(25), pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = "localhost/image:test"


def configuration(buildah: Callable[..., str]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(buildah("inspect", "--type=image", IMAGE))["OCIv1"]["config"]
    return config


def context(folder: Path) -> Path:
    """What a build reads of the repository."""
    for name in ("operator", "trainer-image", "requirements", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".dockerignore"):
        shutil.copy(ROOT / name, folder)
    return folder


def cpu_version() -> str:
    [version] = [one.version for one in lock_of("trainer") if one.name == "torch"]
    return f"{version}+cpu"


def lock_torch(folder: Path, version: str, hashes: list[str]) -> None:
    """What `make lock-cpu` writes."""
    entry = f"torch=={version} {' '.join(f'--hash=sha256:{one}' for one in hashes)}\n"
    (folder / "requirements" / "cpu" / "torch.txt").write_text(entry)


def test_the_operators_image_lists_itself(buildah: Callable[..., str], base_with_pip: str) -> None:
    """On a base of this machine's own, as no registry is asked; the libraries come from the index, by hash."""
    file = f"--file={DOCKERFILES['operator']}"
    buildah("build", file, f"--build-arg=BASE={base_with_pip}", f"--tag={IMAGE}", str(ROOT))
    about = configuration(buildah)
    assert about["User"] == "65532:65532"
    assert not [line for line in about["Env"] if re.search(r"TOKEN|SECRET|PASSWORD", line)]
    assert about["Labels"]["org.opencontainers.image.title"] == "finetune-operator"
    inside = ("run", buildah("from", IMAGE).strip())
    bill = json.loads(buildah(*inside, "cat", "/opt/finetune/sbom.cdx.json"))
    assert {one["name"] for one in bill["components"]} == on_linux("operator")
    assert buildah(*inside, "id", "-u").strip() == "65532"
    assert "FINETUNE_TRAINER_IMAGE: Field required" in buildah(*inside, "python", "-m", "finetune_operator", code=2)


def test_the_trainers_cpu_image_has_pytorchs_own_build_and_no_cuda(
    tmp_path: Path, buildah: Callable[..., str], base_with_pip: str
) -> None:
    """With a stand-in for the one wheel of PyTorch's index, which cannot be reached here; all else is real."""
    version = cpu_version()
    folder = context(tmp_path / "context")
    with serving(tmp_path / "index", version) as index:
        lock_torch(folder, version, index.hashes[version])
        buildah(
            "build", f"--file={folder}/trainer-image/Dockerfile", f"--build-arg=BASE={base_with_pip}",
            "--build-arg=TORCH=cpu", f"--build-arg=TORCH_INDEX={index.url}", f"--tag={IMAGE}", str(folder),
        )  # fmt: skip
    assert index.url not in buildah("inspect", "--type=image", IMAGE)
    inside = ("run", buildah("from", IMAGE).strip())
    bill = json.loads(buildah(*inside, "cat", "/opt/finetune/sbom.cdx.json"))
    assert {one["name"] for one in bill["components"]} == {name for name in on_linux("trainer") if not CUDA.match(name)}
    [torch] = [one for one in bill["components"] if one["name"] == "torch"]
    assert torch["version"] == version
    assert [one["content"] for one in torch["externalReferences"][0]["hashes"]] == index.hashes[version]
    show = "import torch; print(torch.__version__, torch.__file__)"
    assert buildah(*inside, "python", "-c", show).split() == [version, "/opt/libraries/torch/__init__.py"]
    assert index.url not in buildah(*inside, "sh", "-c", "cat /opt/libraries/torch-*/*")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no lock", "error: requirements/cpu/torch.txt is missing; make it with: make lock-cpu"),
        ("another wheel", "error: PyTorch's CPU build could not be had from its index, "),
        ("no index", "error: PyTorch's CPU build could not be had from its index, http://127.0.0.1:9/whl/cpu"),
        ("cuda", "nvidia-nccl-cu13"),
        ("rocm", 'error: TORCH is "rocm"; it is cuda or cpu'),
    ],
)
def test_a_cpu_image_that_is_not_as_locked_is_not_built(
    tmp_path: Path, buildah: Callable[..., str], base_with_pip: str, case: str, said: str
) -> None:
    version = cpu_version()
    folder = context(tmp_path / "context")
    requires = ("nvidia-nccl-cu13",) if case == "cuda" else ()
    with serving(tmp_path / "index", version, requires=requires) as index:
        if case != "no lock":
            lock_torch(folder, version, ["0" * 64] if case == "another wheel" else index.hashes[version])
        output = buildah(
            "build", f"--file={folder}/trainer-image/Dockerfile", f"--build-arg=BASE={base_with_pip}",
            f"--build-arg=TORCH={'rocm' if case == 'rocm' else 'cpu'}", "--env=PIP_RETRIES=0",
            f"--build-arg=TORCH_INDEX={'http://127.0.0.1:9/whl/cpu' if case == 'no index' else index.url}",
            str(folder), code=1,
        )  # fmt: skip
    assert said in output


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_private_checkout_and_other_times_make_an_image_that_works(
    tmp_path: Path, buildah: Callable[..., str], base: str, name: str
) -> None:
    """Files that their owner alone may read, as with a umask of 077, and a builder that gives all of them one time."""
    folder = context(tmp_path / "context")
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    file = f"--file={folder / DOCKERFILES[name].relative_to(ROOT)}"
    given = (f"--build-arg=BASE={base}", "--timestamp=1000000000", f"--tag={IMAGE}")
    buildah("build", "--target=code", file, *given, str(folder))
    inside = ("run", buildah("from", IMAGE).strip())
    show = f"python -v -c 'import finetune_api, finetune_{name}' 2>&1 | grep 'code object from .*/finetune_'"
    origins = re.findall(r"code object from '(\S+)'", buildah(*inside, "sh", "-c", show))
    assert len(origins) == 2
    assert all(origin.endswith(".pyc") for origin in origins), "compiled anew at each start"
