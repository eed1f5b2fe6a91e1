"""What is forgotten: measured against references written out here, gated, and held back by replay and by L2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.training import Metric
from finetune_trainer import forgetting
from finetune_trainer.errors import TrainerError
from finetune_trainer.forgetting import BasePredictions
from trainer.runs import (
    checkpoints,
    complete,
    events,
    finish,
    interrupted,
    make_loop,
    notes,
    output,
    without_dropout,
)
from trainer.tiny import FULL, HOULSBY, make_rows, make_run, write_rows

pytestmark = pytest.mark.usefixtures("unchecked_export")
RETENTION: dict[str, Any] = {"data": {"uri": "file://earlier.jsonl"}}


def kl(tuned_C: Tensor, base_C: Tensor) -> float:
    """KL(tuned || base) class by class, from its definition."""
    tuned, base = (logits.double().softmax(-1).tolist() for logits in (tuned_C, base_C))
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(tuned, base, strict=True) if p > 0)


def divergence(tuned: list[Tensor], base: list[Tensor], saved: bool = False) -> float:
    recorded = BasePredictions()
    for logits in base:
        recorded.record(logits)
    if saved:
        recorded = BasePredictions.from_tensors(recorded.tensors())
    comparison = recorded.comparison()
    for logits in tuned:
        comparison.look(logits)
    return comparison.mean()


@pytest.mark.parametrize("saved", [False, True])
def test_divergence_is_the_mean_over_all_units(saved: bool) -> None:
    torch.manual_seed(0)
    base, tuned = [torch.randn(5, 7), torch.randn(2, 7)], [torch.randn(5, 7), torch.randn(2, 7)]
    pairs = zip(torch.cat(tuned), torch.cat(base), strict=True)
    assert divergence(tuned, base, saved) == pytest.approx(sum(kl(*pair) for pair in pairs) / 7, abs=1e-5)


def test_divergence_of_a_model_from_itself_is_nothing() -> None:
    logits = torch.randn(9, 200)
    assert divergence([logits], [logits]) == pytest.approx(0.0, abs=1e-6)


def test_batches_of_other_widths_and_impossible_classes() -> None:
    """As the ends of answers have them: a class a position, and those outside the text impossible."""
    base, tuned = [torch.randn(2, 5), torch.randn(3, 9)], [torch.randn(2, 5), torch.randn(3, 9)]
    for logits in (*base, *tuned):
        logits[:, 2] = -torch.inf
    possible = [[0, 1, 3, 4], [0, 1, 3, 4, 5, 6, 7, 8]]
    expected = sum(
        kl(of_tuned[classes], of_base[classes])
        for classes, tuned_UC, base_UC in zip(possible, tuned, base, strict=True)
        for of_tuned, of_base in zip(tuned_UC, base_UC, strict=True)
    )
    assert divergence(tuned, base, saved=True) == pytest.approx(expected / 5, abs=1e-5)


def test_of_many_classes_the_likeliest_and_the_rest_are_told_apart() -> None:
    """The bound against the same grouping written out; and it is one."""
    torch.manual_seed(1)
    base, tuned = 3 * torch.randn(4, 500), 3 * torch.randn(4, 500)
    expected = 0.0
    for tuned_C, base_C in zip(tuned, base, strict=True):
        kept = base_C.topk(forgetting.TOP_CLASSES).indices
        groups = [
            torch.cat([p[kept], (p.sum() - p[kept].sum()).unsqueeze(0)]).log()
            for p in (tuned_C.double().softmax(-1), base_C.double().softmax(-1))
        ]
        expected += kl(*groups)
    found = divergence([tuned], [base])
    assert found == pytest.approx(expected / 4, abs=1e-4)
    assert 0 < found < sum(map(kl, tuned, base)) / 4


def test_no_more_units_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MAX_UNITS", 3)
    base, tuned = [torch.randn(2, 4), torch.randn(2, 4)], [torch.randn(2, 4), torch.randn(2, 4)]
    pairs = zip(torch.cat(tuned)[:3], torch.cat(base)[:3], strict=True)
    assert divergence(tuned, base) == pytest.approx(sum(kl(*pair) for pair in pairs) / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "before", "after", "expected"),
    [(Metric.ACCURACY, 0.9, 0.7, 0.2), (Metric.PERPLEXITY, 10.0, 12.0, 0.2), (Metric.LOSS, 0.5, 0.4, -0.2)],
)
def test_a_drop_is_positive_when_it_became_worse(metric: Metric, before: float, after: float, expected: float) -> None:
    assert forgetting.drop(metric, before, after) == pytest.approx(expected)


@pytest.mark.parametrize("strategy", [FULL, HOULSBY])
def test_divergence_of_a_run_is_that_of_the_two_models(tiny_bert: Path, tmp_path: Path, strategy: Any) -> None:
    loop = without_dropout(make_loop(make_run(tmp_path, tiny_bert, strategy, num_labels=3)))
    batch = loop.task.collate(loop.task.evaluation)

    def logits() -> Tensor:
        with torch.no_grad():
            return loop.model.eval()(**batch.inputs).logits

    base = logits()
    state = loop.run()
    expected = sum(map(kl, logits(), base)) / len(base)
    assert expected > 1e-4
    assert state.last["klToBase"] == pytest.approx(expected, rel=1e-3)
    assert "klToBase" not in state.before


def retaining_run(directory: Path, model: Path, rows: list[dict[str, str]], **fields: Any) -> Any:
    retention = fields.pop("retention", {})
    run = make_run(
        directory,
        model,
        FULL,
        evaluation={"retention": RETENTION | retention, **fields.pop("evaluation", {})},
        **fields,
    )
    write_rows(directory / "earlier.jsonl", rows)
    return run


def turned_around(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows whose labels are the wrong ones: whoever learns the right ones forgets these."""
    other = {"good": "bad", "bad": "good"}
    return [row | {"label": other[row["label"]]} for row in rows]


LEARNT = {"epochs": 12, "learningRate": "5e-3"}


def test_retention_rows_are_evaluated_before_and_after(tiny_bert: Path, tmp_path: Path) -> None:
    rows = make_rows(20, seed=5)
    run = retaining_run(tmp_path, tiny_bert, rows, retention={"maxDrop": "1"}, training=LEARNT)
    termination = complete(run)
    assert termination.result is not None
    assert termination.progress is not None
    found = termination.result.forgetting
    assert found["before"] == termination.result.before["retentionAccuracy"]
    assert found["after"] == termination.result.after["retentionAccuracy"] > found["before"]
    assert termination.progress.forgetting == pytest.approx(found["before"] - found["after"])
    assert found["klToBase"] == termination.result.after["klToBase"] > 0
    card = (output(run) / "README.md").read_text()
    assert f"accuracy on the retention rows: {found['before']:.4f} before, {found['after']:.4f} after" in card
    assert "KL(tuned || base)" in card


def test_a_result_that_forgets_too_much_fails(tiny_bert: Path, tmp_path: Path) -> None:
    run = retaining_run(tmp_path, tiny_bert, turned_around(make_rows(20, seed=5)), training=LEARNT)
    termination = finish(run)
    assert termination.exit_code == ExitCode.FORGETTING
    assert "evaluation.retention.maxDrop allows 0.02" in termination.message
    assert "on the retention rows went from" in termination.message
    assert not output(run).exists()


def test_rolls_back_to_the_best_that_kept_within(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripted accuracies: of the steps that keep within 0.1, the second is the best on the new task."""
    values = [(0.5, 0.9), (0.6, 0.85), (0.7, 0.82), (0.8, 0.7), (0.9, 0.5), (0.7, 0.82)]
    run = retaining_run(
        tmp_path,
        tiny_bert,
        make_rows(8, seed=5),
        retention={"maxDrop": "0.1", "onForgetting": "RollBack"},
        evaluation={"everySteps": 2},
        training={"maxSteps": 8},
    )
    loop = make_loop(run)
    remaining, measure = iter(values), loop.judge._measure

    def measure_as_told(*arguments: Any) -> dict[str, float]:
        new, kept = next(remaining)
        return measure(*arguments) | {"accuracy": new, "retentionAccuracy": kept}

    monkeypatch.setattr(loop.judge, "_measure", measure_as_told)
    state = loop.run()
    assert (state.step, state.best_step) == (8, 4)
    assert "the weights of step 4 are the result" in notes(run)[-1]
    best = loop.checkpoints.load_best(4)
    assert all(torch.equal(entry.parameter, best[name]) for name, entry in loop.tuning.trained.items())


def test_nothing_to_roll_back_to_fails(tiny_bert: Path, tmp_path: Path) -> None:
    rows = turned_around(make_rows(20, seed=5))
    settings = {"maxDrop": "0", "onForgetting": "RollBack"}
    termination = finish(retaining_run(tmp_path, tiny_bert, rows, retention=settings, training=LEARNT))
    assert termination.exit_code == ExitCode.FORGETTING


def test_a_loss_on_the_retention_rows_that_is_no_number_ends_the_run(tiny_bert: Path, tmp_path: Path) -> None:
    """The embedding of a word that only they have overflows: no weight and no other figure is NaN."""
    run = retaining_run(
        tmp_path,
        tiny_bert,
        [{"text": "z", "label": "good"}, {"text": "z film", "label": "bad"}],
        retention={"maxDrop": "1"},
        evaluation={"everySteps": 2},
        training={"maxSteps": 6},
        checkpoint={"everySteps": 2},
    )
    loop = make_loop(run)
    step, embeddings = loop.optimizer.step, loop.model.get_input_embeddings()  # type: ignore[operator]

    def step_and_break(*arguments: Any) -> Any:
        step(*arguments)
        if loop.state.step + 1 == 4:
            with torch.no_grad():
                embeddings.weight[loop.task.tokenizer.convert_tokens_to_ids("z")] = 3e38

    loop.optimizer.step = step_and_break  # type: ignore[method-assign]
    with pytest.raises(TrainerError, match="the evaluation retentionLoss is nan at step 4") as caught:
        loop.run()
    assert caught.value.code == ExitCode.NON_FINITE_LOSS
    assert [path.name for path in checkpoints(run)] == ["step-00000002"]


def test_a_divergence_that_is_no_number_ends_the_run(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting.Comparison, "mean", lambda _: math.inf)
    termination = finish(make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2}))
    assert termination.exit_code == ExitCode.NON_FINITE_LOSS
    assert "the evaluation klToBase is inf at step 2" in termination.message


def test_replayed_rows_are_the_share_asked_for(tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        tiny_bert,
        FULL,
        num_train=60,
        data={
            "train": {"uri": "file://train.jsonl"},
            "evaluation": {"uri": "file://evaluation.jsonl"},
            "replay": {"source": {"uri": "file://earlier.jsonl"}, "fraction": "0.25"},
            "deduplicate": False,
        },
    )
    write_rows(tmp_path / "earlier.jsonl", [{"text": f"plot {n}", "label": "good"} for n in range(7)])
    task = make_loop(run).task
    replayed = task.train[60:]
    assert len(replayed) == 20  # a quarter of 80, of 7 rows as often as it takes
    texts = [task.tokenizer.decode(example.input_ids, skip_special_tokens=True) for example in replayed]
    assert {text.split()[0] for text in texts} == {"plot"}
    counts = sorted(texts.count(text) for text in set(texts))
    assert counts == [2, 3, 3, 3, 3, 3, 3]
    assert any("earlier.jsonl: 20 rows kept of 7 read" in line for line in task.data_report)


def test_labels_of_earlier_rows_must_be_known(tiny_bert: Path, tmp_path: Path) -> None:
    termination = finish(retaining_run(tmp_path, tiny_bert, [{"text": "a film", "label": "superb"}] * 4))
    assert termination.exit_code == ExitCode.DATA_INVALID
    assert "labels that the training data never shows: 'superb'" in termination.message


def test_the_base_survives_an_interruption(tiny_bert: Path, tmp_path: Path) -> None:
    """Resumed in a new process' place: the divergence is still that from the start, not from the checkpoint."""
    whole = make_loop(make_run(tmp_path / "whole", tiny_bert, FULL, training={"maxSteps": 6}))
    expected = whole.run().last["klToBase"]
    run = make_run(tmp_path / "cut", tiny_bert, FULL, training={"maxSteps": 6})
    interrupted(make_loop(run), 3)
    again = make_loop(run)
    assert again.run().last["klToBase"] == expected
    assert not [event for event in events(run) if "divergence" in event.get("text", "")]
