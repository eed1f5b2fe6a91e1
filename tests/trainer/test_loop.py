"""The loop: one gradient however a batch is split, nothing non-finite in the weights, early stopping, figures."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import losses, storage
from finetune_trainer.batching import Batch
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.evaluation import EvaluationInterrupted, evaluate
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.progress import ProgressLog
from finetune_trainer.stop import StopFlag
from trainer.runs import checkpoints, complete, events, finish, interrupted, make_loop, notes, output, without_dropout
from trainer.tiny import FULL, HOULSBY, STRATEGIES, make_run

PRECISE = 1e-6
NAN = float("nan")


def one_step(loop: TrainingLoop) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the next batch; the update itself is left out."""
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update(
            {n: e.parameter.grad.clone() for n, e in loop.tuning.trained.items() if e.parameter.grad is not None}
        )

    loop.optimizer.step = keep  # type: ignore[method-assign]
    loop.model.train()
    return loop.train_step(), gradients


def still_loop(directory: Path, model: Path, name: str, **training: Any) -> TrainingLoop:
    """A loop without dropout, whose gradients are not clipped."""
    settings = {"batchSize": 12, "maxGradNorm": "1e9", **training}
    return without_dropout(make_loop(make_run(directory, model, STRATEGIES[name], num_labels=3, training=settings)))


def pad_more(task: Any, columns: int) -> None:
    """Make every batch of a task wider than it needs to be."""
    collate = task.collate

    def wider(examples: Any) -> Batch:
        batch = collate(examples)
        inputs = {name: nn.functional.pad(tensor, (0, columns)) for name, tensor in batch.inputs.items()}
        return dataclasses.replace(batch, inputs=inputs)

    task.collate = wider


def evaluated(loop: TrainingLoop, batch_size: int) -> dict[str, float]:
    return evaluate(loop.model, loop.forward, loop.task, loop.task.evaluation, batch_size, loop.device, StopFlag())


def assert_same(first: tuple[float, dict[str, Tensor]], second: tuple[float, dict[str, Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], abs=PRECISE)
    assert first[1].keys() == second[1].keys()
    assert max(gradient.abs().max().item() for gradient in first[1].values()) > 1e-2
    for name, gradient in first[1].items():
        assert torch.allclose(gradient, second[1][name], rtol=0, atol=PRECISE), name


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("micro", [1, 5, 7, 12])
def test_split_changes_neither_loss_nor_gradient(still_bert: Path, tmp_path: Path, name: str, micro: int) -> None:
    whole = one_step(still_loop(tmp_path / "whole", still_bert, name))
    assert_same(whole, one_step(still_loop(tmp_path / "split", still_bert, name, microBatchSize=micro)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_padding_changes_neither_loss_nor_gradient(still_bert: Path, tmp_path: Path, name: str) -> None:
    plain = still_loop(tmp_path / "plain", still_bert, name)
    padded = still_loop(tmp_path / "padded", still_bert, name)
    pad_more(padded.task, 9)
    assert_same(one_step(plain), one_step(padded))


@pytest.mark.parametrize("name", STRATEGIES)
def test_loss_is_what_it_should_be(still_bert: Path, tmp_path: Path, name: str) -> None:
    """Against a sum written out here, and against the loss that transformers' own head computes."""
    loop = still_loop(tmp_path, still_bert, name, microBatchSize=5)
    rows = loop.sampler.next()
    loop.sampler.load_state_dict({"epoch": 0, "position": 0})
    batch = loop.task.collate([loop.task.train[row] for row in rows])
    with torch.no_grad():
        logits_BC = loop.model(**batch.inputs).logits.tolist()
        theirs = loop.model(**batch.inputs, labels=batch.targets).loss.item()
    reference = 0.0
    for logits_C, target in zip(logits_BC, batch.targets.tolist(), strict=True):
        reference += math.log(sum(math.exp(logit) for logit in logits_C)) - logits_C[target]
    loss, _ = one_step(loop)
    assert loss == pytest.approx(reference / len(rows), abs=PRECISE)
    assert loss == pytest.approx(theirs, abs=PRECISE)


def test_last_batch_of_an_epoch_counts_by_its_own_rows(still_bert: Path, tmp_path: Path) -> None:
    """A smaller batch is a mean over fewer rows, not a smaller sum."""
    run = make_run(tmp_path, still_bert, FULL, num_train=10, training={"batchSize": 8, "maxGradNorm": "1e9"})
    loop = without_dropout(make_loop(run))
    sizes = []
    for _ in range(2):
        rows = loop.sampler.next()
        sizes.append(len(rows))
        loop.sampler.load_state_dict({"epoch": 0, "position": len(sizes) - 1})
        batch = loop.task.collate([loop.task.train[row] for row in rows])
        with torch.no_grad():
            expected = loop.model(**batch.inputs, labels=batch.targets).loss.item()
        assert one_step(loop)[0] == pytest.approx(expected, abs=PRECISE)
    assert sorted(sizes) == [2, 8]


def test_cross_entropy_is_computed_in_float32() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.1, 0.2]], dtype=torch.bfloat16)
    loss = losses.cross_entropy(logits, torch.tensor([0, 1]), 2)
    assert loss.dtype == torch.float32
    expected = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_evaluation_does_not_depend_on_its_batches(still_bert: Path, tmp_path: Path, batch_size: int) -> None:
    loop = make_loop(make_run(tmp_path, still_bert, FULL))
    expected = evaluated(loop, 64)
    found = evaluated(loop, batch_size)
    assert found == pytest.approx(expected, abs=PRECISE)


def test_evaluation_draws_nothing_and_changes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    loop = make_loop(make_run(tmp_path, tiny_bert, FULL))
    loop.model.train()
    state = torch.get_rng_state()
    first = evaluated(loop, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert loop.model.training
    assert evaluated(loop, 8) == first
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_evaluation_is_interrupted(tiny_bert: Path, tmp_path: Path) -> None:
    loop = make_loop(make_run(tmp_path, tiny_bert, FULL))
    loop.stop.is_set = True
    loop.model.train()
    with pytest.raises(EvaluationInterrupted):
        evaluate(loop.model, loop.forward, loop.task, loop.task.evaluation, 8, loop.device, loop.stop)
    assert loop.model.training
    with pytest.raises(Stopped, match="stopped at step 0"):
        loop.run()


def saving_run(directory: Path, model: Path, strategy: dict[str, Any], **fields: Any) -> Run:
    defaults: dict[str, Any] = {"checkpoint": {"everySteps": 2, "keep": 2}, "evaluation": {"everySteps": 3}}
    return make_run(directory, model, strategy, **(defaults | fields))


def assert_good_ones_only(run: Run, *steps: int) -> None:
    """The checkpoints are those of the given steps, and each is whole and finite."""
    assert [path.name for path in checkpoints(run)] == [f"step-{step:08d}" for step in steps]
    for path in checkpoints(run):
        storage.check_directory(path)
    newest = make_loop(run).checkpoints.newest()
    assert newest is not None
    assert all(tensor.isfinite().all() for tensor in (newest.weights | newest.optimizer).values())
    assert not output(run).exists()


def failing_at(loop: TrainingLoop, step: int, break_it: Callable[[TrainingLoop], None]) -> TrainerError:
    """Break something before a step is made, and see how the run ends."""
    train_step = loop.train_step

    def step_with_a_break() -> float:
        if loop.state.step + 1 == step:
            break_it(loop)
        return train_step()

    loop.train_step = step_with_a_break  # type: ignore[method-assign]
    with pytest.raises(TrainerError) as caught:
        loop.run()
    assert caught.value.code == ExitCode.NON_FINITE_LOSS
    return caught.value


def some_parameter(loop: TrainingLoop) -> nn.Parameter:
    return next(entry.parameter for entry in loop.tuning.trained.values() if entry.parameter.ndim == 2)


def weight_becomes_nan(loop: TrainingLoop) -> None:
    head = [entry.parameter for entry in loop.tuning.trained.values() if entry.is_head]
    with torch.no_grad():
        head[-1].view(-1)[0] = NAN


def gradient_becomes(value: float) -> Callable[[TrainingLoop], None]:
    def break_it(loop: TrainingLoop) -> None:
        some_parameter(loop).register_hook(lambda gradient: torch.full_like(gradient, value))

    return break_it


@pytest.mark.parametrize("name", ["full", "houlsby", "lora"])
def test_nan_in_a_weight_ends_the_run(tiny_bert: Path, tmp_path: Path, name: str) -> None:
    run = saving_run(tmp_path, tiny_bert, STRATEGIES[name])
    error = failing_at(make_loop(run), 6, weight_becomes_nan)
    assert "the loss is nan at step 6" in error.message
    assert_good_ones_only(run, 4, 2)


@pytest.mark.parametrize("value", [NAN, math.inf, 1e30])
def test_bad_gradient_ends_the_run_before_the_update(tiny_bert: Path, tmp_path: Path, value: float) -> None:
    """The loss is fine; so would be the next one. (1e30 is finite, but its norm is not.)"""
    run = saving_run(tmp_path, tiny_bert, FULL)
    loop = make_loop(run)
    before: dict[str, Tensor] = {}

    def break_it(loop: TrainingLoop) -> None:
        before.update({name: parameter.detach().clone() for name, parameter in loop.model.named_parameters()})
        gradient_becomes(value)(loop)

    error = failing_at(loop, 6, break_it)
    assert "the gradient's norm is" in error.message
    assert "at step 6" in error.message
    assert all(torch.equal(parameter, before[name]) for name, parameter in loop.model.named_parameters())
    assert_good_ones_only(run, 4, 2)


def test_nan_in_an_evaluation_ends_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    """Step 9 is evaluated and not saved; what is broken before it must not come through as a metric."""
    run = saving_run(tmp_path, tiny_bert, FULL)
    loop = make_loop(run)
    step = loop.optimizer.step

    def step_and_break(*arguments: Any) -> Any:
        step(*arguments)
        if loop.state.step + 1 == 9:
            weight_becomes_nan(loop)

    loop.optimizer.step = step_and_break  # type: ignore[method-assign]
    with pytest.raises(TrainerError) as caught:
        loop.run()
    assert caught.value.code == ExitCode.NON_FINITE_LOSS
    assert "the evaluation loss is nan at step 9" in caught.value.message
    assert_good_ones_only(run, 8, 6)
    text = Path(run.work_dir, "progress.jsonl").read_text()
    assert "NaN" not in text
    assert [event["step"] for event in events(run) if event["event"] == "evaluation"] == [0, 3, 6]


def test_nan_made_by_the_update_is_not_saved(tiny_bert: Path, tmp_path: Path) -> None:
    """The loss before the update was fine, and the next one comes only after the checkpoint."""
    run = saving_run(tmp_path, tiny_bert, FULL, evaluation={"everySteps": 100})
    loop = make_loop(run)
    step = loop.optimizer.step

    def step_and_break(*arguments: Any) -> Any:
        step(*arguments)
        if loop.state.step + 1 == 6:
            weight_becomes_nan(loop)

    loop.optimizer.step = step_and_break  # type: ignore[method-assign]
    with pytest.raises(TrainerError, match="the update made weights that are not finite at step 6"):
        loop.run()
    assert_good_ones_only(run, 4, 2)


@pytest.mark.usefixtures("unchecked_export")
def test_absurd_learning_rate_on_a_real_model(minilm: Path, tweets: Path, tmp_path: Path) -> None:
    """As a user meets it: a mistyped exponent."""
    run = make_run(
        tmp_path,
        minilm,
        HOULSBY,
        training={"learningRate": "1e9", "batchSize": 4, "maxSteps": 40, "warmupRatio": "0.5"},
        checkpoint={"everySteps": 1, "keep": 2},
        data={
            "train": {"uri": f"file://{tweets}/train.jsonl"},
            "evaluation": {"uri": f"file://{tweets}/evaluation.jsonl"},
            "maxLength": 16,
        },
        evaluation={"batchSize": 250},
    )
    termination = finish(run)
    assert termination.exit_code == ExitCode.NON_FINITE_LOSS
    assert termination.reason == "NonFiniteLoss"
    assert "learningRate" in termination.hint
    assert termination.progress is not None
    done = termination.progress.step
    assert f"at step {done + 1};" in termination.message or f"at step {done};" in termination.message
    saved = [int(path.name.removeprefix("step-")) for path in checkpoints(run)]
    assert all(step <= done for step in saved)
    assert_good_ones_only(run, *saved)


@pytest.mark.usefixtures("unchecked_export")
def test_absurd_learning_rate_from_the_first_step(tiny_bert: Path, tmp_path: Path) -> None:
    run = saving_run(tmp_path, tiny_bert, FULL, training={"learningRate": "1e9", "maxSteps": 40})
    termination = finish(run)
    assert termination.exit_code == ExitCode.NON_FINITE_LOSS
    assert not output(run).exists()
    for path in Path(run.work_dir).rglob("step-*"):  # none at all where the first update overflows already
        storage.check_directory(path)


def scripted(loop: TrainingLoop, values: list[float], metric: str = "accuracy") -> TrainingLoop:
    """A loop whose evaluations give these values of a metric in turn."""
    remaining, measure = iter(values), loop.judge._measure

    def measure_as_told(*arguments: Any) -> dict[str, float]:
        return measure(*arguments) | {metric: next(remaining)}

    loop.judge._measure = measure_as_told  # type: ignore[method-assign]
    return loop


@pytest.mark.parametrize(
    ("values", "patience", "delta", "steps", "best", "early"),
    [
        ([0.5, 0.6, 0.7, 0.6, 0.6, 0.7], 2, "0", 8, 4, True),
        ([0.5, 0.6, 0.6, 0.6, 0.6], 2, "0", 6, 2, True),  # equal is no gain
        ([0.5, 0.6, 0.5, 0.7, 0.5, 0.8], 2, "0", 10, 10, False),  # a gain starts patience anew
        # Too small a gain spends patience, as none would; but what was trained is better, and the result is the best.
        ([0.5, 0.6, 0.61, 0.62, 0.0], 2, "0.05", 6, 6, True),
        ([0.5, 0.6, 0.61, 0.58, 0.7], 2, "0.05", 6, 4, True),
        ([0.5, 0.6, 0.64, 0.68, 0.72, 0.76], 3, "0.05", 8, 8, True),  # small gains do not add up to a large one
        ([0.5, 0.6, 0.62, 0.7, 0.7, 0.7], 2, "0.05", 10, 6, False),  # a large one starts patience anew
        ([0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6], 4, "0", 10, 2, False),  # patience runs out at the very end
        ([0.9, 0.6, 0.5, 0.4, 0.6], 2, "0", 6, 2, True),  # the untrained model is no candidate
    ],
)
def test_early_stopping(
    tiny_bert: Path, tmp_path: Path, values: list[float], patience: int, delta: str, steps: int, best: int, early: bool
) -> None:
    stopping = {"patience": patience, "minDelta": delta}
    run = make_run(
        tmp_path,
        tiny_bert,
        FULL,
        training={"maxSteps": 10},
        evaluation={"everySteps": 2, "earlyStopping": stopping},
    )
    loop = scripted(make_loop(run), [*values, 0.42])
    weights: dict[int, Tensor] = {}
    save_best = loop.checkpoints.save_best

    def note_weights(step: int, tensors: dict[str, Tensor]) -> None:
        weights[step] = next(iter(tensors.values())).clone()
        save_best(step, tensors)

    loop.checkpoints.save_best = note_weights  # type: ignore[method-assign]
    state = loop.run()
    assert (state.step, state.best_step, state.stopped_early) == (steps, best, early)
    first = next(iter(loop.tuning.trained.values())).parameter
    assert torch.equal(first, weights[best])
    if best != steps:
        assert f"the weights of step {best} are the result" in notes(run)[-1]


def test_a_run_that_has_stopped_early_is_at_its_end(tiny_bert: Path, tmp_path: Path) -> None:
    """Also when it is resumed to be exported: nothing is to go any more, and no step is planned."""
    run = make_run(
        tmp_path,
        tiny_bert,
        FULL,
        training={"maxSteps": 10},
        evaluation={"everySteps": 2, "earlyStopping": {"patience": 1}},
    )
    for loop in (scripted(make_loop(run), [0.5, 0.6, 0.5, 0.42]), make_loop(run)):
        assert loop.run().stopped_early
        latest = loop.progress.latest
        assert (latest.step, latest.total_steps, latest.percent, latest.eta_seconds) == (4, 4, 100, 0)


def test_lower_is_better_for_a_loss(tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        tiny_bert,
        FULL,
        training={"maxSteps": 6},
        evaluation={"everySteps": 2, "metric": "loss", "earlyStopping": {"patience": 1}},
    )
    state = scripted(make_loop(run), [0.9, 0.5, 0.6, 0.5], "loss").run()
    assert (state.best_step, state.step, state.stopped_early) == (2, 4, True)


@pytest.mark.usefixtures("unchecked_export")
def test_lengths_of_a_run(tiny_bert: Path, tmp_path: Path) -> None:
    """Steps and evaluations as asked for; 20 rows make 3 batches of 8."""
    cases: list[tuple[dict[str, Any], dict[str, Any], int, list[int]]] = [
        ({"epochs": 2}, {}, 6, [0, 3, 6]),
        ({"maxSteps": 4}, {}, 4, [0, 3, 4]),
        ({"maxSteps": 4}, {"everySteps": 4}, 4, [0, 4]),
        ({"maxSteps": 2}, {"everySteps": 100}, 2, [0, 2]),
    ]
    for number, (training, evaluation, steps, evaluated) in enumerate(cases):
        run = make_run(tmp_path / f"{number}", tiny_bert, FULL, num_train=20, training=training, evaluation=evaluation)
        result = complete(run).result
        assert result is not None
        assert result.steps == steps
        assert [event["step"] for event in events(run) if event["event"] == "evaluation"] == evaluated
        assert [event["when"] for event in events(run) if event["event"] == "evaluation"][-1] == "after"


@pytest.mark.usefixtures("unchecked_export")
def test_progress_says_what_happens(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.progress._MIN_INTERVAL_SECONDS", 0.0)
    run = saving_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 5})
    termination = complete(run)
    shown = [event["progress"] for event in events(run) if event["event"] == "progress"]
    assert [line["step"] for line in shown] == sorted(line["step"] for line in shown)
    assert {line["totalSteps"] for line in shown} == {5}  # from the first line on
    assert {line["step"] for line in shown} == set(range(6))
    last = termination.progress
    assert last is not None
    assert (last.step, last.percent, last.eta_seconds) == (5, 100, 0)
    assert last.last_checkpoint is not None
    assert last.last_checkpoint.step == 5
    assert last.evaluation.keys() == {"accuracy", "macroF1", "loss", "klToBase"}
    for value in (last.loss, last.grad_norm, last.learning_rate, last.tokens_per_second):
        assert value is not None
        assert value > 0


def test_memory_is_that_of_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # there is a GPU, and the job asks for none
    progress = ProgressLog(None)
    progress.start(0, 2)
    progress.step(
        1, loss=1.0, terms={}, learning_rate=1.0, grad_norm=1.0, epoch=0.1, tokens=1, device=torch.device("cpu")
    )
    assert (progress.latest.memory_peak_bytes or 0) > 2**20


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch, platform: str, unit: int) -> None:
    """The system counts in KiB, but macOS in bytes."""
    monkeypatch.setattr("sys.platform", platform)
    progress = ProgressLog(None)
    progress.start(0, 2)
    progress.step(
        1, loss=1.0, terms={}, learning_rate=1.0, grad_norm=1.0, epoch=0.1, tokens=1, device=torch.device("cpu")
    )
    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert counted * unit * 0.9 < (progress.latest.memory_peak_bytes or 0) <= counted * unit


def test_weights_that_were_given_broken_are_not_blamed_on_the_rate(tiny_bert: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    termination = finish(make_run(tmp_path / "run", model, FULL))
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert termination.message == "the evaluation loss is nan before anything was trained: the given model computes it"
    assert termination.hint == "look for weights in it that are NaN or infinite, and copy it again"


@pytest.mark.usefixtures("unchecked_export")
def test_progress_is_known_again_after_a_resume(tiny_bert: Path, tmp_path: Path) -> None:
    run = saving_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 6})
    loop = interrupted(make_loop(run), 4)
    again = make_loop(run)
    again.stop.is_set = True
    with pytest.raises(Stopped):
        again.run()
    latest = again.progress.latest
    assert (latest.step, latest.total_steps, latest.percent) == (4, 6, 66)
    assert latest.last_checkpoint is not None
    assert latest.last_checkpoint.step == 4
    assert latest.evaluation == pytest.approx(loop.state.last)


@pytest.mark.usefixtures("unchecked_export")
def test_seed_decides_everything(tiny_bert: Path, tmp_path: Path) -> None:
    outputs = []
    for number, seed in enumerate((1, 1, 2)):
        run = make_run(tmp_path / f"{number}", tiny_bert, HOULSBY, training={"seed": seed, "maxSteps": 5})
        complete(run)
        outputs.append((output(run) / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.usefixtures("unchecked_export")
def test_time_is_counted_over_all_attempts(tiny_bert: Path, tmp_path: Path) -> None:
    run = saving_run(tmp_path, tiny_bert, FULL)
    first = complete(run).result
    assert first is not None
    assert first.duration_seconds > 0
    [state_file] = [path / "state.json" for path in checkpoints(run)[:1]]
    assert json.loads(state_file.read_text())["seconds"] == pytest.approx(first.duration_seconds)
