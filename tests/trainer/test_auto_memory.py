"""The estimate of memory against papers' figures and measured peaks, and what is read of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.auto.facts import Load
from finetune_trainer.auto.memory import adapter_bytes, full_tuning_bytes
from finetune_trainer.auto.read import memory_there, read_facts
from finetune_trainer.errors import TrainerError
from finetune_trainer.strategies import prepare
from finetune_trainer.tasks import make_task
from trainer.runs import CPU
from trainer.test_auto_choose import CLASSIFIER, ENCODER, GENERATOR
from trainer.tiny import make_model, make_run, write_rows
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

# What the estimate may be off by, which docs/auto.md says too.
FACTOR = 1.5
NOTHING, LARGE = Load(rows=0, tokens=0, units=0), Load(rows=4096, tokens=512, units=1)


def test_a_parameter_that_is_trained_takes_16_bytes() -> None:
    """Rajbhandari et al. 2020, section 3.1: 120 GB for 7.5 billion parameters (their figure 1)."""
    larger = replace(CLASSIFIER, model=replace(ENCODER, parameters=ENCODER.parameters + 7_500_000_000))
    larger, smaller = (replace(facts, training=LARGE) for facts in (larger, CLASSIFIER))
    assert full_tuning_bytes(larger) - full_tuning_bytes(smaller) == 120 * 10**9


# In a process of its own: what a process has taken it seldom gives back.
SAVE = """
import sys
from pathlib import Path
import torch
from finetune_trainer.checkpoint import Checkpoint, CheckpointStore

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

moments = {str(number): torch.ones(2**22) for number in range(8)}
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = peak()
store = CheckpointStore(Path(sys.argv[1]), "me", 1, print)
store.save(Checkpoint(step=1, weights={"w": torch.ones(1)}, optimizer=moments, random={}, state={}))
print((peak() - before) / sum(4 * one.numel() for one in moments.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_checkpoint_is_written_without_a_copy(tmp_path: Path) -> None:
    """So the estimate counts weights, gradients and moments, and nothing for it."""
    facts = replace(CLASSIFIER, training=NOTHING, evaluation=NOTHING)
    assert full_tuning_bytes(facts) == 16 * ENCODER.parameters
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) < 0.1


def test_activations_of_gpt_3_are_those_of_the_paper() -> None:
    """Korthikanti et al. 2022, equation 2: s b h L (34 + 5 a s / h), where 5 a s / h is 80 for GPT-3 (section 5)."""
    s, b, h, a, layers = 2048, 1, 12288, 96, 96
    model = replace(ENCODER, parameters=0, layers=layers, hidden_size=h, heads=a, outputs=0)
    device = replace(CLASSIFIER.device, activation_bytes=2)
    load = Load(rows=b, tokens=s, units=1)
    facts = replace(CLASSIFIER, model=model, training=load, evaluation=NOTHING, device=device)
    assert full_tuning_bytes(facts) == s * b * h * layers * (34 + 80)
    fused = replace(facts, device=replace(device, keeps_attention=False))
    assert full_tuning_bytes(fused) == s * b * h * layers * 34


def test_adapters_need_no_state_for_frozen_weights() -> None:
    difference = full_tuning_bytes(CLASSIFIER) - adapter_bytes(CLASSIFIER, 1_000_000)
    assert difference == 12 * 110_000_000 - 16 * 1_000_000


def test_a_large_evaluation_over_a_vocabulary_counts() -> None:
    larger = replace(GENERATOR, evaluation=replace(GENERATOR.evaluation, rows=256))
    assert full_tuning_bytes(larger) > full_tuning_bytes(GENERATOR) + 50 * 2**30


# In a process of its own: what a process has taken it seldom gives back.
MEASURE = """
import json, sys
from pathlib import Path
import peft, torch
from finetune_api.run import Run
from finetune_trainer.auto.choose import FULL, BOTTLENECK
from finetune_trainer.auto.memory import full_tuning_bytes, adapter_bytes
from finetune_trainer.auto.read import read_facts
from finetune_trainer.data.sources import model_directory
from finetune_trainer.tasks import make_task
from trainer.runs import CPU, make_loop

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

torch.set_num_threads(1)
run = Run.model_validate_json(Path(sys.argv[1]).read_text())
directory = model_directory(run.spec.model, run)
facts = read_facts(run, make_task(run, directory), directory, CPU)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = peak()
make_loop(run).run()
is_full = run.spec.strategy.adapter is None
estimate = full_tuning_bytes(facts) if is_full else adapter_bytes(facts, facts.model.bottleneck_parameters)
print(json.dumps({"measured": peak() - before, "estimate": estimate}))
"""


def measure(run_file: Path) -> dict[str, int]:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(run_file)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("strategy", "words", "batch_size"),
    [({"full": {}}, 30, 32), ({"full": {}}, 120, 16), ({"adapter": {"type": "Bottleneck"}}, 60, 32)],
    ids=["full", "full-long-rows", "bottleneck"],
)
def test_the_estimate_is_near_the_measured_peak(
    minilm: Path, tmp_path: Path, strategy: dict[str, Any], words: int, batch_size: int
) -> None:
    run = make_run(
        tmp_path,
        minilm,
        strategy,
        training={"maxSteps": 3, "batchSize": batch_size},
        evaluation={"everySteps": 100, "batchSize": 8},
        data={
            "train": {"uri": "file://train.jsonl"},
            "evaluation": {"uri": "file://evaluation.jsonl"},
            "maxLength": 128,
        },
    )
    rows = [{"text": "word " * words + str(number), "label": "ab"[number % 2]} for number in range(128)]
    write_rows(tmp_path / "train.jsonl", rows[8:])
    write_rows(tmp_path / "evaluation.jsonl", rows[:8])
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()), encoding="utf-8")
    found = measure(tmp_path / "run.json")
    assert 1 / FACTOR < found["estimate"] / found["measured"] < FACTOR, found


# ---- what is read ----


def test_facts_of_a_classifier_are_those_of_the_model_that_is_trained(tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(
        tmp_path, tiny_bert, {"adapter": {"type": "Bottleneck"}}, training={"batchSize": 8, "microBatchSize": 5}
    )
    task = make_task(run, tiny_bert)
    facts = read_facts(run, task, tiny_bert, CPU)
    loaded = task.load_model()
    assert facts.model.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert (facts.model.kind, facts.model.layers, facts.model.hidden_size) == ("BertForSequenceClassification", 2, 32)
    assert (facts.rows, facts.units, facts.model.outputs) == (60, 60, 2)
    assert facts.training.rows == 5
    assert facts.training.tokens == max(len(example.input_ids) for example in task.train)
    assert facts.device.keeps_attention  # it has dropout, and a CPU
    tuning = prepare(run, task, loaded, tiny_bert, CPU, lambda _: None)
    adapters = [one.parameter.numel() for name, one in tuning.trained.items() if ".adapters." in name]
    assert facts.model.bottleneck_parameters == sum(adapters)


def test_facts_of_a_generator_are_those_of_the_model_that_is_trained(tmp_path: Path) -> None:
    model = make_lm(tmp_path / "model")
    run = make_lm_run(tmp_path / "run", model, {"adapter": {"type": "LoRA"}}, make_chats(24))
    task = make_task(run, model)
    facts = read_facts(run, task, model, CPU)
    assert facts.rows == 24
    assert facts.units == task.num_units(task.train)
    assert facts.model.outputs == len(task.tokenizer)
    assert not facts.device.keeps_attention
    tuning = prepare(run, task, task.load_model(), model, CPU, lambda _: None)
    assert facts.model.lora_parameters == sum(one.parameter.numel() for one in tuning.trained.values())


def test_a_family_without_known_places_has_no_bottlenecks_but_lora(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "mpnet")
    run = make_run(tmp_path / "run", model, {"full": {}})
    facts = read_facts(run, make_task(run, model), model, CPU)
    assert facts.model.lora_parameters
    assert facts.model.bottleneck_parameters is None
    task = make_task(run, model)
    with pytest.raises(TrainerError, match="no place for bottleneck adapters is known"):
        prepare(
            make_run(tmp_path / "again", model, {"adapter": {}}), task, task.load_model(), model, CPU, lambda _: None
        )


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with 8 GiB available, and a process that uses one page."""
    process, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (process / "self").mkdir(parents=True)
    cgroup.mkdir()
    (process / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    (process / "self/statm").write_text("100 1 1 1 0 1 0\n")
    return cgroup, process


PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("memory.max", "max\n", 8 * 2**30),
        ("memory.max", f"{2**30}\n", 2**30 - PAGE),
        ("memory.max", "1\n", 0),
        ("memory.max", f"{2**40}\n", 8 * 2**30),
        ("memory.max", "nonsense", 8 * 2**30),
        ("memory/memory.limit_in_bytes", f"{2**31}\n", 2**31 - PAGE),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", 8 * 2**30),
    ],
)
def test_the_lesser_of_the_machines_and_the_containers_memory_counts(
    machine: tuple[Path, Path], file: str, content: str, expected: int
) -> None:
    cgroup, process = machine
    (cgroup / file).parent.mkdir(exist_ok=True)
    (cgroup / file).write_text(content)
    assert memory_there(CPU, cgroup, process) == expected


def test_where_nothing_tells_the_memory_is_unknown(tmp_path: Path) -> None:
    assert memory_there(torch.device("cpu"), tmp_path, tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_this_machine_tells() -> None:
    there = memory_there(CPU)
    assert there is not None
    assert 2**20 < there < 2**50
