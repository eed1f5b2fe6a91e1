"""Checkpoints are whole or not used; the newest usable one is; nothing of another run ever is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.run import Run
from finetune_trainer import storage
from finetune_trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.runs import checkpoint_directory, checkpoints, complete, end_state, leftovers, make_loop, notes, output
from trainer.tiny import FULL, HOULSBY, make_model, make_rows, make_run, write_rows

pytestmark = pytest.mark.usefixtures("unchecked_export")

FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", storage.MANIFEST)


def saved(step: int, best_step: int | None = None) -> Checkpoint:
    tensor = torch.full((3,), float(step))
    state = {"step": step, "best_step": best_step}
    random = {"cpu": torch.get_rng_state()}
    return Checkpoint(step, {"a": tensor}, {"exp_avg/a": tensor}, random, state)


class Store:
    """A store, with what it said."""

    def __init__(self, directory: Path, keep: int = 2, owner: str = "uid/spec", inputs: str = "data") -> None:
        self.said: list[str] = []
        self.store = CheckpointStore(directory, owner, keep, self.said.append, inputs=inputs)

    def steps(self, directory: Path) -> list[str]:
        return sorted(path.name for path in directory.glob("*/*"))

    def newest_step(self) -> int | None:
        newest = self.store.newest()
        return newest.step if newest else None


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, empty, flip_a_bit, remove)


def test_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path).store
    assert store.newest() is None
    store.save(saved(3))
    newest = store.newest()
    assert newest is not None
    assert (newest.step, newest.state) == (3, {"step": 3, "best_step": None})
    assert torch.equal(newest.weights["a"], torch.full((3,), 3.0))
    assert torch.equal(newest.random["cpu"], torch.get_rng_state())
    assert newest.saved_at is not None


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    store = Store(tmp_path, keep)
    for step in (4, 8, 12, 16, 100_000_000):
        store.store.save(saved(step))
    expected = [f"step-{step:08d}" for step in (4, 8, 12, 16, 100_000_000)][-keep:]
    assert store.steps(tmp_path) == expected
    assert store.newest_step() == 100_000_000


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_newest(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    store = Store(tmp_path)
    store.store.save(saved(4))
    store.store.save(saved(8))
    [directory] = tmp_path.glob("*/step-00000008")
    damage(directory / name)
    assert store.newest_step() == 4
    [said] = store.said
    assert said.startswith("checkpoint step-00000008 is not used: ")
    assert ("no valid manifest" in said or name in said) or name == storage.MANIFEST


def test_flipped_bits_of_a_manifest(tmp_path: Path) -> None:
    """Every byte counts: keys, names, sizes, checksums. (White space does not, and cannot be one bit from anything.)"""
    store = Store(tmp_path)
    store.store.save(saved(4))
    store.store.save(saved(8))
    [manifest] = tmp_path.glob(f"*/step-00000008/{storage.MANIFEST}")
    content = manifest.read_bytes()
    for number in range(len(content)):
        damaged = bytearray(content)
        damaged[number] ^= 1 << number * 5 % 8
        manifest.write_bytes(damaged)
        if (newest := store.newest_step()) != 4:
            assert json.loads(damaged) == json.loads(content), f"byte {number}: {newest}"


def test_no_files_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.store.save(saved(4))
    [parent] = tmp_path.iterdir()
    (parent / "step-00000008").mkdir()
    (parent / "step-00000012").write_text("not a directory")
    assert store.newest_step() == 4
    assert len(store.said) == 2
    store.store.save(saved(12))
    assert store.steps(tmp_path) == ["step-00000004", "step-00000012"]
    assert store.newest_step() == 12


@pytest.mark.parametrize("keep", [1, 2])
def test_unusable_ones_push_no_good_one_out(tmp_path: Path, keep: int) -> None:
    """A damaged one with a higher step would otherwise count as the newest until training has passed it."""
    first = Store(tmp_path, keep=3)
    for step in (4, 8, 12):
        first.store.save(saved(step))
    for step in (8, 12):
        [path] = tmp_path.glob(f"*/step-{step:08d}/weights.safetensors")
        truncate(path)
    store = Store(tmp_path, keep)
    assert store.newest_step() == 4
    store.store.save(saved(6))
    assert store.steps(tmp_path) == ["step-00000004", "step-00000006"][-keep:]
    assert Store(tmp_path, keep).newest_step() == 6


def test_same_step_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.store.save(saved(4))
    store.store.save(Checkpoint(4, {"a": torch.zeros(1)}, {}, {}, {"step": 4, "more": 1}))
    newest = store.store.newest()
    assert newest is not None
    assert newest.state == {"step": 4, "more": 1}
    assert not leftovers(tmp_path)


def test_best_is_kept_as_long_as_a_checkpoint_needs_it(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    store.store.save_best(2, {"a": torch.full((3,), 2.0)})
    store.store.save(saved(4, best_step=2))
    store.store.save_best(6, {"a": torch.full((3,), 6.0)})
    assert {"best-00000002", "best-00000006"} <= set(store.steps(tmp_path))
    store.store.save(saved(8, best_step=6))
    assert store.steps(tmp_path) == ["best-00000002", "best-00000006", "step-00000004", "step-00000008"]
    store.store.save(saved(12, best_step=6))
    assert store.steps(tmp_path) == ["best-00000006", "step-00000008", "step-00000012"]
    assert torch.equal(store.store.load_best(6)["a"], torch.full((3,), 6.0))


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_its_best_weights_a_checkpoint_is_not_used(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = Store(tmp_path)
    store.store.save(saved(4))
    store.store.save_best(6, {"a": torch.ones(3)})
    store.store.save(saved(8, best_step=6))
    [path] = tmp_path.glob("*/best-00000006/weights.safetensors")
    damage(path)
    assert store.newest_step() == 4
    assert "best" in store.said[0]


def test_never_those_of_another(tmp_path: Path) -> None:
    Store(tmp_path, owner="uid-1/spec-1").store.save(saved(4))
    for owner in ("uid-2/spec-1", "uid-1/spec-2"):
        other = Store(tmp_path, owner=owner)
        assert other.newest_step() is None
        assert other.said == ["there are checkpoints of another run or release; they are not used"]
        other.store.save(saved(8))
    mended = Store(tmp_path, owner="uid-1/spec-1", inputs="other data")
    assert mended.newest_step() is None
    assert mended.said == ["there are checkpoints of other data or another model than now; they are not used"]
    again = Store(tmp_path, owner="uid-1/spec-2")
    assert again.newest_step() == 8
    assert again.said == []
    assert Store(tmp_path, owner="uid-1/spec-1").newest_step() == 4


def test_clears_away_what_killed_writes_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.store.save(saved(4))
    [parent] = tmp_path.iterdir()
    for name in (".incomplete-step-00000008", ".incomplete-best-00000007"):
        shutil.copytree(parent / "step-00000004", parent / name)
    shutil.copytree(parent / "step-00000004", parent / ".replaced-step-00000004")
    assert store.newest_step() == 4
    assert store.steps(tmp_path) == ["step-00000004"]
    # Killed between the two renames of a replacement.
    (parent / "step-00000004").rename(parent / ".replaced-step-00000004")
    assert store.newest_step() == 4


def two_halves(directory: Path, model: Path) -> tuple[Run, dict[str, Any]]:
    """A run that stopped after step 12, with checkpoints of 8 and 12; and how it ends when nothing disturbs it."""
    fields: dict[str, Any] = {"checkpoint": {"everySteps": 4, "keep": 2}, "training": {"maxSteps": 16}}
    undisturbed = make_run(directory / "undisturbed", model, FULL, **fields)
    complete(undisturbed)
    run = make_run(directory / "run", model, FULL, **fields)
    stop_after(run, 12)
    assert [path.name for path in checkpoints(run)] == ["step-00000012", "step-00000008"]
    return run, end_state(undisturbed)


def stop_after(run: Run, step: int) -> None:
    """Train up to a step; the process is then gone, as if killed."""
    loop = make_loop(run)
    train_step = loop.train_step

    def step_or_die() -> float:
        if loop.state.step == step:
            raise KeyboardInterrupt
        return train_step()

    loop.train_step = step_or_die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Run, dict[str, Any]]:
    return two_halves(tmp_path_factory.mktemp("halves"), tiny_bert)


@pytest.fixture
def half(halves: tuple[Run, dict[str, Any]], tmp_path: Path) -> tuple[Run, dict[str, Any]]:
    run, end = halves
    shutil.copytree(run.manifest_dir, tmp_path / "copy")
    paths = {"manifest_dir": str(tmp_path / "copy"), "work_dir": str(tmp_path / "copy" / "work")}
    return run.model_copy(update=paths), end


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove])
@pytest.mark.parametrize("name", FILES)
def test_run_goes_on_from_the_one_before(
    half: tuple[Run, dict[str, Any]], name: str, damage: Callable[[Path], None]
) -> None:
    run, end = half
    damage(checkpoints(run)[0] / name)
    complete(run)
    said = notes(run)
    assert any(note.startswith("checkpoint step-00000012 is not used: ") for note in said)
    assert "resumed from the checkpoint at step 8 of 16" in said
    assert end_state(run) == end


def test_run_starts_anew_when_none_is_usable(half: tuple[Run, dict[str, Any]]) -> None:
    run, end = half
    for path in checkpoints(run):
        truncate(path / "optimizer.safetensors")
    complete(run)
    assert sum("is not used" in note for note in notes(run)) == 2
    assert not any("resumed" in note for note in notes(run))
    assert end_state(run) == end


def test_run_of_another_uid_or_spec_starts_anew(half: tuple[Run, dict[str, Any]]) -> None:
    run, _ = half
    training = run.spec.training.model_copy(update={"learning_rate": 1e-3})
    others = (
        run.model_copy(update={"uid": "another"}),
        run.model_copy(update={"spec": run.spec.model_copy(update={"training": training})}),
    )
    for other in others:
        complete(other)
        assert not any("resumed" in note for note in notes(other))


def test_run_with_more_checkpoints_goes_on(half: tuple[Run, dict[str, Any]]) -> None:
    """How often is saved decides nothing about the weights."""
    run, end = half
    more = run.spec.checkpoint.model_copy(update={"every_steps": 1, "keep": 3})
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"checkpoint": more})})
    complete(run)
    assert "resumed from the checkpoint at step 12 of 16" in notes(run)
    assert [path.name for path in checkpoints(run)] == ["step-00000016", "step-00000015", "step-00000014"]
    assert end_state(run)["output"] == end["output"]


@pytest.mark.parametrize("source", ["train.jsonl", "evaluation.jsonl"])
def test_run_on_other_rows_starts_anew(half: tuple[Run, dict[str, Any]], source: str) -> None:
    """Somebody mended the data and started the job again: the old checkpoints know nothing of it."""
    run, _ = half
    write_rows(Path(run.manifest_dir, source), make_rows(40, seed=7))
    complete(run)
    assert any("other data" in note for note in notes(run))
    assert not any("resumed" in note for note in notes(run))


def test_run_on_another_model_starts_anew(tmp_path: Path) -> None:
    """The base of an adapter is not in the checkpoint, so it must be the same."""
    model = make_model(tmp_path / "model", seed=0)
    run = make_run(tmp_path / "run", model, HOULSBY, checkpoint={"everySteps": 4, "keep": 2})
    stop_after(run, 8)
    make_model(model, seed=1)
    complete(run)
    assert any("another model" in note for note in notes(run))
    assert not any("resumed" in note for note in notes(run))


def test_loaded_state_is_not_the_checkpoints_file(half: tuple[Run, dict[str, Any]]) -> None:
    """Safetensors maps files into memory; training on such tensors would need the file after it is dropped."""
    run, _ = half
    loop = make_loop(run)
    assert loop._resume()
    maps = Path("/proc/self/maps").read_text()
    assert str(checkpoint_directory(run)) not in maps


def test_a_stopped_run_is_not_saved_twice(tiny_bert: Path, tmp_path: Path) -> None:
    """Writing the step again would put the only good checkpoint at risk (keep: 1, disk nearly full)."""
    run = make_run(tmp_path, tiny_bert, FULL, checkpoint={"everySteps": 4, "keep": 1})
    stop_after(run, 4)
    before = {path: path.stat().st_mtime_ns for path in checkpoint_directory(run).rglob("*")}
    loop = make_loop(run)
    loop.stop.is_set = True
    with pytest.raises(Exception, match="stopped at step 4"):
        loop.run()
    assert {path: path.stat().st_mtime_ns for path in checkpoint_directory(run).rglob("*")} == before


def test_output_directory_is_the_same_after_all(half: tuple[Run, dict[str, Any]]) -> None:
    run, _ = half
    complete(run)
    storage.check_directory(output(run))
    assert not leftovers(output(run).parent)
