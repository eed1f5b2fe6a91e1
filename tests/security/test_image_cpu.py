"""The lock of the trainer's image for CPUs: PyTorch's own build of the same version, all else as in the other image.

PyTorch's index cannot be reached where these tests run, so a stand-in takes its place; uv and pip are the real ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from script_modules import load
from security.image_files import CUDA, ROOT, lock_of
from torch_index import TorchIndex, serving

pytest_plugins = ["security.image_bills"]
pytestmark = pytest.mark.security(25)

sbom = load("sbom")


def torch_version() -> str:
    [version] = [entry.version for entry in lock_of("trainer") if entry.name == "torch"]
    return str(version)


def make_lock(folder: Path, index: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `make lock-cpu` in a copy of what it reads."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements", dirs_exist_ok=True)
    return subprocess.run(
        ["make", *options, "lock-cpu", f"TORCH_INDEX={index}"], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"UV_HTTP_RETRIES": "0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """PyTorch's index, with other builds and versions than the one that is wanted."""
    ours = torch_version()
    with serving(tmp_path_factory.mktemp("index"), "2.1.0+cpu", ours, f"{ours}+cpu", f"{ours}+cpu.cxx11.abi") as found:
        yield found


def test_all_but_pytorch_is_locked_as_in_the_other_image() -> None:
    others = [entry for entry in lock_of("trainer") if entry.name != "torch" and not CUDA.match(entry.name)]
    assert lock_of("cpu/trainer") == others
    assert {"bitsandbytes", "transformers", "sympy"} <= {entry.name for entry in others}


def test_pytorchs_cpu_build_is_locked_by_hash_and_names_no_index(tmp_path: Path, index: TorchIndex) -> None:
    done = make_lock(tmp_path, index.url)
    assert done.returncode == 0, done.stderr
    wanted = f"{torch_version()}+cpu"
    text = (tmp_path / "requirements" / "cpu" / "torch.txt").read_text()
    [entry] = sbom.read_lock(text)
    assert (entry.name, entry.version) == ("torch", wanted)
    assert sorted(entry.hashes) == sorted(index.hashes[wanted])
    assert "://" not in text
    assert text.startswith("# Locked by `make lock-cpu`; do not edit.\ntorch==")
    assert "keep it with the sources" in done.stdout


@pytest.mark.parametrize("reached", [True, False], ids=["another version", "no index"])
def test_a_lock_that_cannot_be_made_says_why_and_changes_nothing(tmp_path: Path, reached: bool) -> None:
    kept = tmp_path / "requirements" / "cpu" / "torch.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("former\n")
    with serving(tmp_path / "index", "2.1.0+cpu") as index:
        address = index.url if reached else "http://127.0.0.1:9/whl/cpu"
        done = make_lock(tmp_path, address)
    assert done.returncode != 0
    said = (
        f"error: torch=={torch_version()}+cpu could not be had from PyTorch's index, {address}; run this where it can"
    )
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert kept.read_text() == "former\n"


def test_the_bill_says_which_build_it_is_and_where_it_is_published(
    tmp_path: Path, index: TorchIndex, validate: Callable[[Any], None]
) -> None:
    version = f"{torch_version()}+cpu"
    libraries = tmp_path / "libraries"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--index-url={index.url}"]
    subprocess.run([*command, f"--dest={tmp_path}", f"torch=={version}"], check=True)
    zipfile.ZipFile(*tmp_path.glob("*.whl")).extractall(libraries)
    bill = sbom.make_sbom("finetune-trainer", "1.2.3", [sbom.Locked("torch", version, ("0" * 64,))], libraries)
    validate(bill)
    [torch] = bill["components"]
    assert torch["version"] == version
    name, _, where = torch["purl"].partition("?")
    assert name == f"pkg:pypi/torch@{version.replace('+', '%2B')}"
    assert where == "repository_url=https:%2F%2Fdownload.pytorch.org%2Fwhl%2Fcpu"
    assert torch["externalReferences"][0]["url"] == "https://download.pytorch.org/whl/cpu/torch/"
    assert index.url not in str(bill)
