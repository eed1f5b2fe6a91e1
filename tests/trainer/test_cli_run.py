"""`finetune run` as a person meets it: real processes, a tiny real model, real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.documents import write_document

FINETUNE = [sys.executable, "-m", "finetune_cli.main"]
TEXTS = {"positive": "a good and lovely film number", "negative": "a bad and boring film number"}


def rows(count: int) -> list[dict[str, Any]]:
    labels = list(TEXTS)
    return [{"text": f"{TEXTS[labels[i % 2]]} {i}", "label": labels[i % 2]} for i in range(count)]


class Bench:
    """A directory with a manifest, data and the model; `finetune run` is called in it."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.write_rows("train.jsonl", rows(64))
        self.write_rows("evaluation.jsonl", rows(100)[80:])
        self.spec: dict[str, Any] = {
            "task": "TextClassification",
            "model": {"uri": f"file://{model}"},
            "data": {"train": {"uri": "file://train.jsonl"}, "evaluation": {"uri": "file://evaluation.jsonl"}},
            "strategy": {"full": {}},
            "training": {"epochs": 2, "batchSize": 8, "learningRate": "1e-3"},
            "output": {"uri": "pvc://models/tiny"},
            "resources": {"gpusPerNode": 0},
        }

    def write_rows(self, name: str, content: list[dict[str, Any]]) -> None:
        (self.directory / name).write_text("".join(json.dumps(row) + "\n" for row in content))

    def start(self, *options: str) -> subprocess.Popen[str]:
        manifest = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "tiny"},
            "spec": self.spec,
        }
        (self.directory / "job.yaml").write_text(write_document(manifest))
        return subprocess.Popen(
            [*FINETUNE, "run", "job.yaml", "--metrics-port", "0", *options],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    @property
    def work(self) -> Path:
        return self.directory / ".finetune" / "default.tiny"

    def termination(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.work / "termination.json").read_text())
        return content

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.work / "progress.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [event for event in found if event["event"] == kind]


@pytest.fixture
def bench(tmp_path: Path, tiny_bert: Path) -> Bench:
    return Bench(tmp_path, tiny_bert)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_a_job_completes_with_a_table_and_is_not_run_twice(bench: Bench) -> None:
    code, output = bench.run()
    assert code == 0, output
    for word in ("without a model", "before", "after", "trained parameters", "share of all", "time", "tiny"):
        assert word in output
    assert (bench.work / "volumes/models/tiny/model.safetensors").is_file()
    first = bench.termination()
    again, output = bench.run()
    assert again == 0
    assert "is Complete already" in output
    assert "without a model" in output
    assert bench.termination() == first


def test_ctrl_c_saves_and_the_second_run_goes_on(bench: Bench) -> None:
    bench.spec["training"] = {"maxSteps": 3000, "batchSize": 8, "learningRate": "1e-3"}
    process = bench.start()
    wait_for(lambda: any(event["progress"]["step"] >= 5 for event in bench.events("progress")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "saving a checkpoint" in output
    stopped_at = bench.termination()["progress"]["step"]
    assert 5 <= stopped_at < 3000
    process = bench.start()
    note = wait_for(lambda: [e["text"] for e in bench.events("note") if "resumed from the checkpoint" in e["text"]])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert f"step {stopped_at} of 3000" in note[0]


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
    [trainer] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(trainer), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "killed by SIGKILL; most often memory ran out" in output


def test_no_trainer_is_left_behind_on_a_second_ctrl_c(bench: Bench) -> None:
    bench.spec["training"] = {"maxSteps": 3000, "batchSize": 8}
    process = bench.start()
    wait_for(lambda: bench.events("progress"))
    [trainer] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (137, 143)  # the first may have been served before the second came
    assert not Path(f"/proc/{trainer}").exists()


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
    assert not (bench.work / "volumes/models/tiny").exists()


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
