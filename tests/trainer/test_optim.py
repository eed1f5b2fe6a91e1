"""Rates, decay and schedule are as asked for; a whole run agrees with Hugging Face's Trainer where that is right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from finetune_api.v1alpha1.training import TrainingSpec
from finetune_trainer import device, optim
from finetune_trainer.optim import Trained
from trainer.runs import make_loop
from trainer.tiny import FULL, make_run


def training(**fields: Any) -> TrainingSpec:
    return TrainingSpec.model_validate_json(json.dumps(fields))


def theirs(schedule: str, warmup_steps: int, total_steps: int) -> list[float]:
    """The factors of transformers' schedule."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if schedule == "Constant":
        scheduler = get_constant_schedule_with_warmup(optimizer, warmup_steps)
    else:
        make = {"Linear": get_linear_schedule_with_warmup, "Cosine": get_cosine_schedule_with_warmup}[schedule]
        scheduler = make(optimizer, warmup_steps, total_steps)
    [compute] = scheduler.lr_lambdas
    return [compute(step) for step in range(total_steps + 1)]


@pytest.mark.parametrize("schedule", ["Linear", "Cosine", "Constant"])
@pytest.mark.parametrize(
    ("ratio", "total_steps"), [("0", 10), ("0.06", 100), ("0.1", 7), ("0.5", 9), ("0.8", 5), ("0", 1)]
)
def test_schedule_against_transformers(schedule: str, ratio: str, total_steps: int) -> None:
    spec = training(schedule=schedule, warmupRatio=ratio)
    ours = [optim.learning_rate_factor(step, total_steps, spec) for step in range(total_steps)]
    warmup_steps = math.ceil(float(ratio) * total_steps)
    expected = theirs(schedule, warmup_steps, total_steps)
    # Theirs begins at a rate of zero, which wastes a step; ours is one step further while it warms up.
    assert ours[:warmup_steps] == pytest.approx(expected[1 : warmup_steps + 1])
    assert ours[warmup_steps:] == pytest.approx(expected[warmup_steps:total_steps])
    assert all(0 < factor <= 1 for factor in ours)


@pytest.mark.parametrize("schedule", ["Linear", "Cosine", "Constant"])
def test_warm_up_all_the_way(schedule: str) -> None:
    spec = training(schedule=schedule, warmupRatio="1")
    assert [optim.learning_rate_factor(step, 4, spec) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_groups() -> None:
    matrix, vector, head, low = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,), (2, 2), (2, 2)))
    trained = {
        "matrix": Trained(matrix),
        "bias": Trained(vector),
        "head": Trained(head, is_head=True),
        "low": Trained(low, rate_scale=0.5),
    }
    optimizer = optim.make_optimizer(trained, training(weightDecay="0.1"), 2e-5)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found[id(matrix)] == (2e-5, 0.1)
    assert found[id(vector)] == (2e-5, 0.0)
    assert found[id(head)] == (pytest.approx(2e-4), 0.1)
    assert found[id(low)] == (1e-5, 0.1)
    optim.set_learning_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([5e-6, 1e-5, 1e-4])


@pytest.mark.parametrize(("body", "head"), [(1e-5, 1e-4), (3e-4, 1e-3), (1e-2, 1e-2)])
def test_default_rate_of_the_head(body: float, head: float) -> None:
    trained = {"head": Trained(nn.Parameter(torch.zeros(1)), is_head=True)}
    optimizer = optim.make_optimizer(trained, training(), body)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(head)
    optimizer = optim.make_optimizer(trained, training(headLearningRate="7e-3"), body)
    assert optimizer.param_groups[0]["lr"] == 7e-3


def test_no_decay_on_vectors_of_a_real_architecture(tiny_bert: Path, tmp_path: Path) -> None:
    loop = make_loop(make_run(tmp_path, tiny_bert, FULL, training={"weightDecay": "0.5"}))
    decayed = {
        id(parameter) for group in loop.optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    names = {name for name, parameter in loop.model.named_parameters() if id(parameter) not in decayed}
    assert names == {name for name, _ in loop.model.named_parameters() if name.endswith("bias") or "LayerNorm" in name}


def test_optimizer_state_round_trip() -> None:
    """Also of a parameter that is not contiguous, which safetensors would refuse to write."""
    torch.manual_seed(0)
    straight, turned, unused = (
        nn.Parameter(torch.randn(3, 4)),
        nn.Parameter(torch.randn(4, 3).t()),
        nn.Parameter(torch.ones(2)),
    )
    trained = {"a/b": Trained(straight), "turned": Trained(turned), "unused": Trained(unused)}

    def step(optimizer: torch.optim.AdamW) -> None:
        generator = torch.Generator().manual_seed(len(optimizer.state[straight]))
        for parameter in (straight, turned):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    first = optim.make_optimizer(trained, training(), 1e-2)
    step(first)
    saved = {name: tensor.clone() for name, tensor in optim.optimizer_tensors(first, trained).items()}
    assert all(tensor.is_contiguous() for tensor in saved.values())
    assert set(saved) == {f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in ("a/b", "turned")}
    start = [parameter.detach().clone() for parameter in (straight, turned)]
    step(first)
    expected = [parameter.detach().clone() for parameter in (straight, turned)]

    with torch.no_grad():
        straight.copy_(start[0])
        turned.copy_(start[1])
    second = optim.make_optimizer(trained, training(), 1e-2)
    optim.load_optimizer_tensors(second, trained, saved)
    assert second.state[turned]["exp_avg"].stride() == turned.stride()
    step(second)
    for parameter, value in zip((straight, turned), expected, strict=True):
        assert torch.equal(parameter, value)


STEPS = 12


class RecordingTrainer(Trainer):
    """Hugging Face's Trainer over batches that are given, noting its losses unrounded."""

    def __init__(self, batches: list[dict[str, torch.Tensor]], **arguments: Any) -> None:
        super().__init__(train_dataset=batches, **arguments)
        self.losses: list[float] = []

    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_size=None, shuffle=False)  # type: ignore[arg-type]

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        loss = super().compute_loss(model, inputs, *arguments, **options)
        self.losses.append(loss.item())
        return loss


def test_same_curve_as_the_trainer_of_transformers(still_bert: Path, tmp_path: Path) -> None:
    """An independent reference for loss, gradient, clipping, schedule, decay and update together (accumulation 1)."""
    rates = {"learningRate": "3e-3", "headLearningRate": "3e-3", "warmupRatio": "0", "maxGradNorm": "0.5"}
    run = make_run(tmp_path / "run", still_bert, FULL, training={"maxSteps": STEPS, "weightDecay": "0.1", **rates})
    loop = make_loop(run)
    loop.model.train()
    loop.model.save_pretrained(tmp_path / "start")
    rows = [loop.sampler.next() for _ in range(STEPS)]
    batches = [loop.task.collate([loop.task.train[row] for row in batch]) for batch in rows]
    loop.sampler.load_state_dict({"epoch": 0, "position": 0})
    ours = [loop.train_step() for _ in range(STEPS)]

    trainer = RecordingTrainer(
        [{**batch.inputs, "labels": batch.targets} for batch in batches],
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "start", dtype=torch.float32),
        args=TrainingArguments(
            output_dir=str(tmp_path / "theirs"), max_steps=STEPS, learning_rate=3e-3, lr_scheduler_type="linear",
            weight_decay=0.1, max_grad_norm=0.5, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
            remove_unused_columns=False,
        ),
    )  # fmt: skip
    trainer.train()
    assert trainer.losses == pytest.approx(ours, abs=1e-4)
    assert max(ours) - min(ours) > 0.1  # there was something to agree on
    theirs_by_name = dict(trainer.model.named_parameters())
    for name, parameter in loop.model.named_parameters():
        assert torch.allclose(parameter, theirs_by_name[name], atol=1e-4), name


def test_threads_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert device.available_cores(tmp_path) == 8  # no cgroup at all
    for text, cores in (("max 100000\n", 8), ("250000 100000\n", 3), ("50000 100000\n", 1), ("9000000 100000", 8)):
        (tmp_path / "cpu.max").write_text(text)
        assert device.available_cores(tmp_path) == cores, text
    for text in ("", "garbage", "1 2 3", "100000 0"):
        (tmp_path / "cpu.max").write_text(text)
        assert device.available_cores(tmp_path) == 8, text


def test_cores_of_cgroup_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for quota, cores in (("-1", 8), ("400000", 4), ("150000", 2), ("1000", 1), ("nonsense", 8)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
        assert device.available_cores(tmp_path) == cores, quota


def test_threads_are_left_alone_when_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert device.set_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(device, "available_cores", lambda: 2)
        assert device.set_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_random_states_round_trip() -> None:
    cpu = torch.device("cpu")
    states = device.random_states(cpu)
    first = torch.randn(3)
    device.set_random_states(states, cpu)
    assert torch.equal(torch.randn(3), first)


def test_bf16_on_a_cpu_keeps_the_weights_in_float32(tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 4, "precision": "BF16"})
    loop = make_loop(run)
    seen: list[torch.dtype] = []
    linear = next(module for module in loop.model.modules() if isinstance(module, nn.Linear))
    linear.register_forward_hook(lambda _module, _inputs, result: seen.append(result.dtype))
    state = loop.run()
    assert state.step == 4
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in loop.model.parameters()} == {torch.float32}
    tensors = optim.optimizer_tensors(loop.optimizer, loop.tuning.trained)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["Auto", "FP32"])
def test_other_precisions_on_a_cpu_are_float32(tiny_bert: Path, tmp_path: Path, precision: str) -> None:
    loop = make_loop(make_run(tmp_path, tiny_bert, FULL, training={"precision": precision}))
    batch = loop.task.collate(loop.task.train[:2])
    with loop.autocast():
        assert loop.model(**batch.inputs).logits.dtype == torch.float32
