"""Evaluation over a large vocabulary: the same figures however it is cut, in little memory; what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import losses
from finetune_trainer.batching import UNLABELED, Batch, Example
from finetune_trainer.loop import TrainingLoop
from trainer.distilling import distilling
from trainer.runs import finish, make_loop
from trainer.tiny import FULL, NEUTRAL, make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

MORE_THAN_THERE_IS = 2**50


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("models") / "llama")


def figures(loop: TrainingLoop) -> dict[str, float]:
    """What an evaluation says after two steps, the divergence included."""
    loop.judge.evaluate_base(loop.state)
    loop.model.train()
    for _ in range(2):
        loop.train_step()
    loop.judge.evaluate("during", loop.state)
    return loop.state.last


def test_figures_do_not_depend_on_the_parts(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_lm_run(tmp_path, llama, FULL, make_chats(8), make_chats(8, seed=1))
    loop = make_loop(run)
    whole = figures(loop)
    batch = loop.task.collate(sorted(loop.task.evaluation, key=lambda row: len(row.input_ids), reverse=True))
    with torch.no_grad():
        logits_UC = loop.task.unit_logits(loop.model.eval()(**batch.inputs), batch)
        loss_sum = losses.cross_entropy(logits_UC, batch.targets, 1.0).item()
    assert whole["loss"] == loss_sum / len(batch.targets)  # to the bit, where one part is enough
    assert whole["klToBase"] > 0
    for units in (1, 7):
        monkeypatch.setattr(losses, "NUMBERS_AT_ONCE", units * len(loop.task.tokenizer))
        assert figures(make_loop(run)) == pytest.approx(whole, rel=1e-6)


def sizes_of_batches(run: Run) -> list[int]:
    """How many rows are evaluated at once."""
    loop = make_loop(run)
    found, collate = [], loop.task.collate

    def noting(examples: Sequence[Example]) -> Batch:
        found.append(len(examples))
        return collate(examples)

    loop.task.collate = noting  # type: ignore[method-assign]
    loop.judge.evaluate_base(loop.state)
    return found


def test_rows_of_text_generation_are_few_at_once(llama: Path, tiny_bert: Path, tmp_path: Path) -> None:
    chats = make_chats(4), make_chats(20, seed=1)
    assert sizes_of_batches(make_lm_run(tmp_path / "text", llama, FULL, *chats)) == [8, 8, 4]
    given = make_lm_run(tmp_path / "given", llama, FULL, *chats, evaluation={"batchSize": 15})
    assert sizes_of_batches(given) == [15, 5]
    assert sizes_of_batches(make_run(tmp_path / "labels", tiny_bert, FULL, num_evaluation=100)) == [64, 36]


# In a process of its own: what a process has taken it seldom gives back.
MEASURE = """
import json, sys
from pathlib import Path
import torch
from finetune_api.run import Run
from trainer.runs import make_loop

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

torch.set_num_threads(1)
loop = make_loop(Run.model_validate_json(Path(sys.argv[1]).read_text()))
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = peak()
loop.judge.evaluate_base(loop.state)
loop.judge.evaluate("during", loop.state)
print(json.dumps({"taken": peak() - before, "units": loop.task.num_units(loop.task.evaluation)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_an_evaluation_takes_little_more_than_the_logits_of_a_batch(tmp_path: Path) -> None:
    vocabulary = 65_536
    model = make_lm(tmp_path / "model", vocab_size=vocabulary)
    rows = [{"text": " ".join(NEUTRAL * 4 + [NEUTRAL[number]])} for number in range(7)]
    run = make_lm_run(tmp_path, model, FULL, rows[:2], rows, evaluation={"batchSize": 7}, data={"maxLength": 128})
    (tmp_path / "run.json").write_text(json.dumps(run.to_json()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "run.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    logits = 4 * found["units"] * vocabulary
    assert logits > 2**28
    copies = 6 * 4 * losses.NUMBERS_AT_ONCE
    assert found["taken"] < logits + copies, found


LOGITS_OF_A_STEP = """
import json, sys
from pathlib import Path
import torch
from finetune_trainer import losses

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

torch.set_num_threads(1)
weight = torch.ones(65_536, 1, requires_grad=True)
logits = torch.nn.functional.linear(torch.ones(1536, 1), weight)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = peak()
losses.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), 1.0).backward()
print(json.dumps({"taken": peak() - before, "logits": 4 * logits.numel()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_step_takes_little_more_than_its_logits_and_their_gradient() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGITS_OF_A_STEP], capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(done.stdout)
    assert found["logits"] > 2**28
    copies = 5 * 4 * losses.NUMBERS_AT_ONCE
    assert found["taken"] < found["logits"] + copies, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_in_parts_is_the_usual_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """To the bit; and both are those of 64 bits. Some units have no label, and one an impossible class."""
    torch.manual_seed(0)
    logits_UC, targets_U = 3 * torch.randn(50, 97).to(dtype), torch.randint(97, (50,))
    logits_UC[3, 5], targets_U[3], targets_U[7], targets_U[9] = -torch.inf, 6, UNLABELED, -1
    found = []
    for at_once in (losses.NUMBERS_AT_ONCE, 7 * 97):
        monkeypatch.setattr(losses, "NUMBERS_AT_ONCE", at_once)
        leaf_UC = logits_UC.clone().requires_grad_()
        loss = losses.cross_entropy(leaf_UC, targets_U, 13.0)
        (0.5 * loss).backward()
        found.append((loss.item(), leaf_UC.grad))
    (whole, gradient), (in_parts, gradient_in_parts) = found
    assert in_parts == pytest.approx(whole, rel=1e-6)
    assert torch.equal(gradient, gradient_in_parts)
    exact_UC = logits_UC.double().requires_grad_()
    exact = F.cross_entropy(exact_UC, targets_U.clamp(min=-1), ignore_index=-1, reduction="sum") / 13
    (0.5 * exact).backward()
    assert in_parts == pytest.approx(exact.item(), rel=1e-6)
    if dtype == torch.float32:
        torch.testing.assert_close(gradient_in_parts.double(), exact_UC.grad, rtol=0, atol=1e-6)


def test_a_gradient_in_parts_has_no_gradient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would silently lack that of the logits."""
    monkeypatch.setattr(losses, "NUMBERS_AT_ONCE", 97)
    logits_UC = torch.randn(4, 97, requires_grad=True)
    loss = losses.cross_entropy(logits_UC, torch.arange(4), 4.0)
    [gradient_UC] = torch.autograd.grad(loss.square(), logits_UC, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient_UC.sum().backward()


def asking_for_too_much(*_: Any, **__: Any) -> Any:
    """What PyTorch's own allocator says then."""
    return torch.empty(MORE_THAN_THERE_IS)


def test_what_does_not_fit_in_evaluation_names_its_field(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingLoop, "forward", asking_for_too_much)
    termination = finish(make_run(tmp_path, tiny_bert, FULL, evaluation={"batchSize": 24}))
    assert (termination.exit_code, termination.reason) == (ExitCode.OUT_OF_MEMORY, "OutOfMemory")
    assert termination.message.startswith("with 24 rows at once, without training on them: ")
    assert "allocate" in termination.message
    assert termination.hint.startswith("set evaluation.batchSize lower (now 24; same result)")


def test_what_does_not_fit_in_training_names_its_field(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingLoop, "train_step", asking_for_too_much)
    termination = finish(make_run(tmp_path, tiny_bert, FULL))
    assert termination.exit_code == ExitCode.OUT_OF_MEMORY
    assert "allocate" in termination.message
    assert termination.hint.startswith("set training.microBatchSize lower (same result)")


@pytest.mark.usefixtures("unchecked_export")
def test_a_teacher_that_does_not_fit_names_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers as many rows at once as are evaluated."""
    base = make_model(tmp_path / "base", num_hidden_layers=4)
    taught = make_run(tmp_path / "teacher", base, FULL, training={"maxSteps": 1})
    assert finish(taught).exit_code == ExitCode.COMPLETE
    strategy = distilling(taught.local_path(taught.spec.output.uri), response={})
    monkeypatch.setattr("finetune_trainer.distillation.teacher.Teacher.output", asking_for_too_much)
    termination = finish(make_run(tmp_path / "student", base, strategy))
    assert termination.exit_code == ExitCode.OUT_OF_MEMORY
    assert termination.hint.startswith("set evaluation.batchSize lower (now 64; same result)")
