"""The models that the trainer's tests train, and how they are run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Tiny models are slower on more threads, and very slow when other processes want the cores too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as in the operator's pods: threads that wait leave the cores to others
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nothing here may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Fresh processes import torch and transformers: in 4 seconds with their compiled code cached, in 14 without.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / "build" / "pycache"))

import torch  # noqa: E402  (reads OMP_NUM_THREADS)

from finetune_trainer.__main__ import quiet_libraries  # noqa: E402
from finetune_trainer.export import reload  # noqa: E402
from trainer.eventful import RATES, Reference  # noqa: E402
from trainer.reloading import quick_reloads  # noqa: E402
from trainer.tiny import make_model  # noqa: E402

torch.set_num_threads(1)
quiet_libraries()


@pytest.fixture(scope="session", autouse=True)
def _quick_reloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports are reloaded in a moment, as if in a fresh process."""
    with quick_reloads(tmp_path_factory.mktemp("reloads")):
        yield


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, 32 wide, with random weights, without a head."""
    return make_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def still_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    return make_model(
        tmp_path_factory.mktemp("models") / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


@pytest.fixture(scope="module")
def references(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """An eventful run of each strategy that nothing disturbed."""
    return {name: Reference(tmp_path_factory.mktemp(name), tiny_bert, name) for name in RATES}


@pytest.fixture(params=RATES)
def reference(request: pytest.FixtureRequest, references: dict[str, Reference]) -> Reference:
    """Each of them."""
    return references[request.param]


def asset(name: str) -> Path:
    path = ROOT / "build" / "assets" / name
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is missing: run `make assets`", pytrace=False)
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real model of 22 million weights."""
    return asset("models/minilm")


@pytest.fixture(scope="session")
def tweets() -> Path:
    """Real rows."""
    return asset("data/tweets")


@pytest.fixture
def unchecked_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports without the fresh process, which takes seconds and has tests of its own."""
    monkeypatch.setattr(reload, "compare", lambda *_: 0.0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a real file system of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("small_disk: only root on Linux can mount a tmpfs")
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"small_disk: a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
