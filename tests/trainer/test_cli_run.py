"""`finetune run` as a person meets it: real processes, a tiny real model, real signals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from any_user import as_any_user, folder_of_any_user
from finetune_trainer import storage
from finetune_trainer.hold import only_trainer_in
from trainer.cli_bench import FINETUNE, Bench, rows, trainer_of, wait_for


@pytest.fixture
def bench(tmp_path: Path, tiny_bert: Path) -> Bench:
    return Bench(tmp_path, tiny_bert)


def test_a_job_completes_with_a_table_and_is_not_run_twice(bench: Bench) -> None:
    code, output = bench.run()
    assert code == 0, output
    for word in ("without a model", "before", "after", "trained parameters", "share of all", "time", "tiny"):
        assert word in output
    assert (bench.model / "model.safetensors").is_file()
    first = bench.termination()
    again, output = bench.run()
    assert again == 0
    assert "is Complete already" in output
    assert "without a model" in output
    assert bench.termination() == first


def test_a_model_that_is_not_where_it_belongs_is_exported_again(bench: Bench) -> None:
    assert bench.run()[0] == 0
    evaluations = len(bench.events("evaluation"))
    (bench.model / "model.safetensors").unlink()
    code, output = bench.run()
    assert code == 0, output
    assert f"its model is not in {bench.model} (any more)" in output
    assert storage.digest(bench.model) == bench.termination()["result"]["digest"]
    storage.check_directory(bench.model)
    assert len(bench.events("evaluation")) == evaluations  # nothing was trained again


def test_another_output_gets_the_model_though_something_is_there(bench: Bench) -> None:
    assert bench.run()[0] == 0
    elsewhere = bench.work / "volumes/models/elsewhere"
    shutil.copytree(bench.model, elsewhere)
    (elsewhere / "model.safetensors").write_bytes(b"")
    bench.spec["output"] = {"uri": "pvc://models/elsewhere"}
    code, output = bench.run()
    assert code == 0, output
    assert bench.termination()["result"]["uri"] == "pvc://models/elsewhere"
    storage.check_directory(elsewhere)


def test_two_jobs_with_one_output_are_refused_before_anything_starts(bench: Bench) -> None:
    (bench.directory / "link").symlink_to(bench.directory)
    bench.spec["output"] = {"uri": "file://out"}
    bench.write_job("other", output={"uri": f"file://{bench.directory}/link/out"})
    code, output = bench.run("other.yaml")
    assert code == 10
    assert f"the jobs default/tiny and default/other write the same output, {bench.directory / 'out'}" in output
    assert not (bench.directory / ".finetune").exists()


def test_a_model_card_that_was_edited_is_kept(bench: Bench) -> None:
    assert bench.run()[0] == 0
    card = bench.model / "README.md"
    card.write_text("ours, for the films of 2026")
    code, output = bench.run()
    assert code == 0, output
    assert "is Complete already" in output
    assert card.read_text() == "ours, for the films of 2026"


@pytest.mark.parametrize("closed", [(1, 2), (0, 3)], ids=["output", "all"])
def test_it_runs_where_nobody_is_to_see_it(bench: Bench, closed: tuple[int, int]) -> None:
    """As with `nohup finetune run JOB.yaml <&- >&- 2>&- &`: the descriptors are not there at all."""
    process = bench.start(stdout=None, stderr=None, preexec_fn=lambda: os.closerange(*closed))
    assert process.wait(timeout=240) == 0
    storage.check_directory(bench.model)


@contextmanager
def training(bench: Bench) -> Iterator[int]:
    """The job trains meanwhile, in the process with this number."""
    bench.spec["training"] = {"maxSteps": 3000, "batchSize": 8}
    process = bench.start()
    wait_for(lambda: bench.events("progress"))
    try:
        yield trainer_of(process)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "a checkpoint is saved" in output


@pytest.mark.parametrize("options", [("--fresh",), ()])
def test_a_job_that_is_running_is_left_alone(bench: Bench, options: tuple[str, ...]) -> None:
    with training(bench) as trainer:
        lock = (bench.work / "lock").stat().st_ino
        code, output = bench.run(*options)
        assert code == 42, output
        assert f"another trainer is at work in {bench.work} (process {trainer})" in output
        assert f"kill {trainer}" in output
        assert (bench.work / "lock").stat().st_ino == lock
        assert not (bench.work / "termination.json").exists()
        assert (bench.work / "progress.jsonl").exists()


def test_a_fresh_start_is_one_of_all_jobs_or_of_none(bench: Bench) -> None:
    code, output = bench.run()
    assert code == 0, output
    first = bench.termination()
    bench.write_job("other", output={"uri": "pvc://models/other"})
    with only_trainer_in(bench.directory / ".finetune/default.other"):
        code, output = bench.run("other.yaml", "--fresh")
    assert code == 42, output
    assert bench.termination() == first


def test_a_fresh_start_keeps_the_model_until_there_is_a_new_one(bench: Bench) -> None:
    assert bench.run()[0] == 0
    old = storage.digest(bench.model)
    bench.write_rows("train.jsonl", [])
    code, _ = bench.run("--fresh")
    assert code == 11
    assert storage.digest(bench.model) == old
    storage.check_directory(bench.model)
    assert not (bench.work / "checkpoints").exists()
    bench.write_rows("train.jsonl", rows(32))
    code, output = bench.run("--fresh")
    assert code == 0, output
    assert storage.digest(bench.model) == bench.termination()["result"]["digest"] != old


def test_metrics_are_served_while_it_runs(bench: Bench) -> None:
    bench.spec["training"] = {"maxSteps": 3000, "batchSize": 8}
    process = bench.start()
    assert process.stdout is not None
    url = process.stdout.readline().split()[1]

    def scrape() -> str:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    text = wait_for(lambda: (found := scrape()) and "finetune_job_loss{" in found and found)
    assert 'finetune_job_phase{finetune_job_phase="Running",name="tiny",namespace="default"} 1.0' in text
    assert 'finetune_job_eval_metric{metric="accuracy",name="tiny",namespace="default"}' in text
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


def test_a_killed_trainer_is_explained(bench: Bench) -> None:
    bench.spec["training"] = {"maxSteps": 3000, "batchSize": 8}
    process = bench.start()
    wait_for(lambda: bench.events("progress"))
    os.kill(trainer_of(process), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "killed by SIGKILL; most often memory ran out" in output


def break_line(bench: Bench) -> None:
    lines = (bench.directory / "train.jsonl").read_text().splitlines()
    lines[6] = '{"text": "half a row'
    (bench.directory / "train.jsonl").write_text("\n".join(lines))


def give_a_model_of(bench: Bench, *names: str) -> None:
    """A copy of the model with these files in the place of its weights."""
    model = Path(bench.spec["model"]["uri"].removeprefix("file://"))
    copy = shutil.copytree(model, bench.directory / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in names:
        (copy / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    bench.spec["model"]["uri"] = f"file://{copy}"


BAD_INPUT: dict[str, tuple[Callable[[Bench], object], int, str]] = {
    "missing file": (lambda b: (b.directory / "train.jsonl").unlink(), 11, "train.jsonl: no such file"),
    "empty file": (lambda b: b.write_rows("train.jsonl", []), 11, "train.jsonl: no rows"),
    "wrong column": (lambda b: b.spec["data"].update(columns={"label": "lable"}), 11, "lable"),
    "broken line": (break_line, 11, "train.jsonl line 7: not valid JSON"),
    "label never seen": (lambda b: b.write_rows("evaluation.jsonl", [{"text": "so", "label": "so"}]), 11, "'so'"),
    "all rows empty": (lambda b: b.write_rows("train.jsonl", [{"text": "", "label": "positive"}] * 9), 11, "empty"),
    "model without weights": (give_a_model_of, 13, "no weights (model.safetensors)"),
    "pickle only": (lambda b: give_a_model_of(b, "pytorch_model.bin"), 13, "pickles only (pytorch_model.bin)"),
    "non-finite loss": (lambda b: b.spec["training"].update(learningRate="1e9"), 15, "at step "),
    "unmounted claim": (lambda b: b.spec["model"].update(uri="pvc://absent/x"), 10, "--volume CLAIM=DIRECTORY"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_a_sentence_and_an_exit_code(bench: Bench, case: str) -> None:
    spoil, expected_code, words = BAD_INPUT[case]
    spoil(bench)
    code, output = bench.run()
    assert code == expected_code, output
    assert words in output
    assert "Traceback" not in output + (bench.work / "trainer.log").read_text()
    assert not bench.model.exists()


def test_an_unknown_field_is_refused_before_anything_starts(bench: Bench) -> None:
    bench.spec["training"]["lerningRate"] = "1e-3"
    code, output = bench.run()
    assert code == 10
    assert "spec.training.lerningRate: unknown field (did you mean learningRate?)" in output
    assert not bench.work.exists()


def test_a_job_that_is_suspended_is_not_run(bench: Bench) -> None:
    bench.spec["suspend"] = True
    code, output = bench.run()
    assert code == 143
    assert "spec.suspend is true" in output


def full(disk: Callable[[int], Path]) -> Path:
    place = disk(64)
    with contextlib.suppress(OSError):
        (place / "rest").write_bytes(bytes(64 * 1024))
    return place


def test_a_full_disk_is_said_so(bench: Bench, small_disk: Callable[[int], Path]) -> None:
    place = full(small_disk)
    code, output = bench.run("--work-dir", str(place))
    assert code == 40, output
    assert f"{place}/default.tiny/run.json: no space left on the device" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/work", "run.json a directory"])
def test_a_work_directory_that_cannot_be_written_to_is_said_so(bench: Bench, place: str) -> None:
    directory = Path(place) if place.startswith("/") else bench.directory / "work"
    if place == "run.json a directory":
        (directory / "default.tiny/run.json").mkdir(parents=True)
    elif place.endswith("a file"):
        directory.touch()
    code, output = bench.run("--work-dir", str(directory / "below" if place == "below a file" else directory))
    assert code == 14, output
    assert output.startswith(f"finetune: {directory}")
    assert "--work-dir" in output
    assert "Traceback" not in output


def test_a_work_directory_of_another_user_is_said_so(bench: Bench) -> None:
    bench.write_job()
    with folder_of_any_user() as folder:
        folder.chmod(0o500)
        command = [*FINETUNE, "run", str(bench.directory / "tiny.yaml"), "--metrics-port", "0"]
        done = subprocess.run(as_any_user(command), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 14, done.stderr
    assert done.stderr.startswith(f"finetune: {folder}")
    assert "Permission denied; name a directory that can be written to with --work-dir" in done.stderr
