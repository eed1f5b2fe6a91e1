"""Which classes a classifier has: a pretrained output layer is kept with its order, or replaced, never re-labelled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from finetune_trainer.heads import draw_anew, pretrained_output
from finetune_trainer.models import load_model, load_tokenizer
from finetune_trainer.tasks.classes import known_as
from trainer.data_fixtures import run_on
from trainer.extraction import tagged_rows, tagging_run
from trainer.loading_lines import names_left
from trainer.runs import complete, events, make_loop, notes, output
from trainer.tiny import FULL, HOULSBY, KINDS, LORA, make_model, make_rows, make_run, write_rows

TAGS = ["O", "B-good", "I-good", "B-bad", "I-bad"]


def with_classes(directory: Path, base: Path, labels: Sequence[str] | int, auto_class: Any = None) -> Path:
    """A model with a head of these classes, or of so many without names; its weights are random, and tell apart."""
    auto_class = auto_class or AutoModelForSequenceClassification
    names = [f"LABEL_{number}" for number in range(labels)] if isinstance(labels, int) else labels
    torch.manual_seed(5)
    model = auto_class.from_pretrained(
        base, id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)}
    )
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


def loaded(run: Any) -> tuple[Any, torch.Tensor]:
    """A run's task and the weights of its output layer before training."""
    loop = make_loop(run)
    return loop.task, dict(loop.model.named_parameters())["classifier.weight"].detach().clone()


def saved(model: Path) -> torch.Tensor:
    return load_file(model / "model.safetensors")["classifier.weight"]


@pytest.mark.parametrize(
    ("labels", "known", "expected"),
    [
        (("bad", "good"), ("bad", "good"), ("bad", "good")),
        (("bad", "good"), ("good", "bad"), ("good", "bad")),
        (("bad", "good"), ("good", "odd", "bad"), ("good", "odd", "bad")),
        (("bad", "good"), ("GOOD", "ODD", "BAD"), ("good", "ODD", "bad")),
        (("bad", "Bad"), ("bad", "BAD"), None),
        (("Bad", "good"), ("BAD", "bad", "good"), None),
        (("bad", "good"), ("bad", "great"), None),
        (("bad", "good", "odd"), ("bad", "good"), None),
        (("bad", "good"), ("LABEL_0", "LABEL_1"), None),
        (("0", "1"), ("LABEL_0", "LABEL_1"), ("0", "1")),
        (("0", "1"), ("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("1", "2"), ("LABEL_0", "LABEL_1"), None),
        (("0", "1"), ("bad", "good"), None),
        (("LABEL_0", "LABEL_2"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_0", "LABEL_1", "LABEL_2")),
        (("2", "10"), ("10", "2"), ("10", "2")),
        (("0", "1"), ("0.0", "1.0"), ("0", "1")),
        (("0.0", "1.0"), ("1", "0"), ("1.0", "0.0")),
        (("0", "1"), ("0.0", "1.0", "2.0"), ("0", "1", "2.0")),
        (("0", "1"), ("0", "0.0", "1.0"), None),
        (("0", "0.0"), ("0", "1"), None),
        (("0", "1"), ("0.5", "1.0"), None),
    ],
)
def test_known_as(labels: Sequence[str], known: Sequence[str], expected: tuple[str, ...] | None) -> None:
    assert known_as(labels, known) == expected


def test_many_labels_without_names_are_in_the_order_of_their_numbers() -> None:
    labels = sorted(map(str, range(12)))
    assert known_as(labels, [f"LABEL_{number}" for number in range(12)]) == tuple(map(str, range(12)))


class TestTexts:
    def test_another_order_is_kept(self, tiny_bert: Path, tmp_path: Path) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, ["good", "bad"])
        run = make_run(tmp_path / "run", model, FULL, training={"maxSteps": 1})
        task, weights = loaded(run)
        assert task.labels == ("good", "bad")
        assert torch.equal(weights, saved(model))
        for row, example in zip(make_rows(60, seed=1), task.train, strict=False):
            assert task.labels[example.target] == row["label"]

    @pytest.mark.usefixtures("unchecked_export")
    @pytest.mark.parametrize("strategy", [FULL, HOULSBY, LORA], ids=["full", "houlsby", "lora"])
    def test_before_training_it_is_as_good_as_it_is(
        self, tiny_bert: Path, tmp_path: Path, strategy: dict[str, Any]
    ) -> None:
        """Judged by what transformers' own pipeline answers, by name; and what is exported has the same names."""
        model = with_classes(tmp_path / "model", tiny_bert, ["good", "bad"])
        run = make_run(tmp_path / "run", model, strategy, training={"maxSteps": 1})
        complete(run)
        classify = pipeline("text-classification", str(model), device=-1)
        rows = make_rows(24, seed=2)
        right = sum(classify(row["text"])[0]["label"] == row["label"] for row in rows) / len(rows)
        before = next(event for event in events(run) if event["event"] == "evaluation")
        assert before["metrics"]["accuracy"] == pytest.approx(right)
        config = json.loads((output(run) / "config.json").read_text())
        assert config["id2label"] == {"0": "good", "1": "bad"}
        assert [entry["labels"] for entry in config.get("adapters", [])] in ([], [["good", "bad"]])
        assert "the model's own output layer is kept, with its 2 classes" in notes(run)

    def test_classes_that_the_data_does_not_have_are_kept(self, tiny_bert: Path, tmp_path: Path) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, ["odd", "good", "bad"])
        task, weights = loaded(make_run(tmp_path / "run", model, FULL, training={"maxSteps": 1}))
        assert task.labels == ("odd", "good", "bad")
        assert torch.equal(weights, saved(model))
        assert task.data_report[-1] == (
            "the model's own output layer is kept, with its 3 classes, also those that the data does not have: 'odd'"
        )
        assert task.baseline == 0.5

    @pytest.mark.parametrize("labels", [["x", "y"], ["bad", "great"], 2, ["a", "b", "c"], ["bad"]])
    def test_for_others_it_is_replaced(self, tiny_bert: Path, tmp_path: Path, labels: Sequence[str] | int) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, labels)
        run = make_run(tmp_path / "run", model, FULL, training={"maxSteps": 1})
        loop = make_loop(run)
        weights = dict(loop.model.named_parameters())
        own = saved(model)
        assert loop.task.labels == ("bad", "good")
        assert not any(torch.allclose(row, known) for row in weights["classifier.weight"] for known in own)
        assert 0 < weights["classifier.weight"].std() < 3 * 0.15
        assert loop.tuning.trained["classifier.weight"].is_head
        for name, tensor in load_file(model / "model.safetensors").items():
            assert name.startswith("classifier") or torch.equal(weights[name], tensor)
        names = [f"LABEL_{number}" for number in range(labels)] if isinstance(labels, int) else labels
        assert loop.task.data_report[-1] == (
            f"the model's own output layer, for {', '.join(map(repr, names))}, is replaced by a new one: the labels of "
            "the data are 'bad', 'good'"
        )

    @pytest.mark.parametrize("unnamed", [False, True])
    def test_numbers(self, tiny_bert: Path, tmp_path: Path, unnamed: bool) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, 2)
        if unnamed:
            config = json.loads((model / "config.json").read_text())
            kept = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
            (model / "config.json").write_text(json.dumps(kept))
        run = make_run(tmp_path / "run", model, FULL, training={"maxSteps": 1})
        for name in ("train", "evaluation"):
            rows = [{**row, "label": int(row["label"] == "good")} for row in make_rows(24, seed=len(name))]
            write_rows(tmp_path / "run" / f"{name}.jsonl", rows)
        task, weights = loaded(run)
        assert task.labels == ("0", "1")
        assert torch.equal(weights, saved(model))

    @pytest.mark.parametrize(
        ("known", "written"), [(["0.0", "1.0"], "0.0"), (["0.0", "1.0"], "0"), (["0", "1"], "0.0")]
    )
    def test_whole_numbers_of_a_table(self, tiny_bert: Path, tmp_path: Path, known: list[str], written: str) -> None:
        """A table with a missing number has written 0.0, and models have been made of that."""
        model = with_classes(tmp_path / "model", tiny_bert, known)
        train, evaluation = tmp_path / "train.csv", tmp_path / "evaluation.csv"
        for path in (train, evaluation):
            rows = make_rows(24, seed=len(path.stem))
            labels = [written.replace("0", "1", 1) if row["label"] == "good" else written for row in rows]
            lines = [f"{row['text']},{label}" for row, label in zip(rows, labels, strict=True)]
            path.write_text("\n".join(["text,label", *lines]))
        task, weights = loaded(run_on(train, evaluation, model=model))
        assert task.labels == ("0", "1")
        assert torch.equal(weights, saved(model))

    def test_a_body_alone_has_no_classes(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Whatever its configuration says of labels: that may be left of a model that it was made for."""
        model = make_model(tmp_path / "model", id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
        task, _ = loaded(make_run(tmp_path / "run", model, FULL, training={"maxSteps": 1}))
        assert task.labels == ("bad", "good")
        assert len(task.data_report) == 2

    @pytest.mark.slow
    def test_a_peft_adapter_on_a_head_of_another_size_comes_back(self, tiny_bert: Path, tmp_path: Path) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, ["a", "b", "c"])
        run = make_run(tmp_path / "run", model, LORA, training={"maxSteps": 2})
        complete(run)
        assert names_left(run)["model"].config.num_labels == 2


class TestTags:
    def run(self, tmp_path: Path, model: Path) -> Any:
        return tagging_run(tmp_path / "run", model, FULL, training={"maxSteps": 1})

    def test_another_order_is_kept(self, tiny_bert: Path, tmp_path: Path) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, TAGS, AutoModelForTokenClassification)
        task, weights = loaded(self.run(tmp_path, model))
        assert list(task.labels) == TAGS
        assert torch.equal(weights, saved(model))
        tags = [task.labels[tag] for example in task.train for tag in example.target if tag >= 0]
        assert tags == [tag for row in tagged_rows(120, seed=1) for tag in row["tags"]]

    @pytest.mark.usefixtures("unchecked_export")
    def test_tags_that_the_data_does_not_have_are_kept(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Also such as spell no entity: they do not change how those of the data are read."""
        plain = self.run(
            tmp_path / "plain", with_classes(tmp_path / "all", tiny_bert, TAGS, AutoModelForTokenClassification)
        )
        model = with_classes(tmp_path / "model", tiny_bert, [*TAGS, "[PAD]", "B-odd"], AutoModelForTokenClassification)
        wider = self.run(tmp_path / "wider", model)
        scores = []
        for run in (plain, wider):
            loop = make_loop(run)
            metrics = loop.task.new_metrics()
            batch = loop.task.collate(loop.task.evaluation)
            right = torch.nn.functional.one_hot(batch.targets, len(loop.task.labels)).float()
            right[::3, :] = right[::3, :].roll(1, 0)
            metrics.update(loop.task.evaluation, batch, right, 0.0)
            scores.append(metrics.compute())
        assert scores[0] == scores[1]
        assert 0.1 < scores[0]["entityF1"] < 1
        complete(wider)
        assert AutoConfig.from_pretrained(output(wider)).id2label == dict(enumerate([*TAGS, "[PAD]", "B-odd"]))

    def test_for_others_it_is_replaced(self, tiny_bert: Path, tmp_path: Path) -> None:
        model = with_classes(tmp_path / "model", tiny_bert, ["O", "P", "Q", "R", "S"], AutoModelForTokenClassification)
        task, weights = loaded(self.run(tmp_path, model))
        assert task.labels == ("O", "B-bad", "B-good", "I-bad", "I-good")
        assert not torch.allclose(weights, saved(model))


class TestOutputs:
    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_drawn_anew_alone(self, tmp_path: Path, kind: str) -> None:
        """As a new one is in this kind of model; all else is as it was, the rest of the head too."""
        base = make_model(tmp_path / "base", kind)
        torch.manual_seed(1)
        tokenizer = load_tokenizer(base)
        fresh = load_model(AutoModelForSequenceClassification, base, tokenizer, num_labels=64).model.requires_grad_(
            False
        )
        for parameter in fresh.parameters():
            parameter.add_(1.0)
        directory = tmp_path / "model"
        fresh.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        found = pretrained_output(AutoModelForSequenceClassification, directory)
        assert found is not None
        assert len(found.labels) == 64
        assert {name for name in found.parameters if name.endswith("weight")} == {
            name for name, one in fresh.named_parameters() if one.ndim == 2 and len(one) == 64 and "class" in name
        } | {name for name in ("score.weight",) if kind in ("llama", "gpt2")}
        anew = load_model(AutoModelForSequenceClassification, directory, tokenizer, found.parameters, num_labels=64)
        weights = {name: tensor.detach() for name, tensor in anew.model.named_parameters()}
        for name, tensor in fresh.state_dict().items():
            if name not in found.parameters:
                assert torch.equal(weights[name], tensor), name
            elif name.endswith("bias"):
                assert not weights[name].any()
            else:
                assert weights[name].std().item() == pytest.approx(tensor.std().item(), rel=0.2)
                assert abs(weights[name].mean().item()) < 0.1
        assert found.parameters <= anew.head

    def test_none_in_a_body(self, tiny_bert: Path) -> None:
        assert pretrained_output(AutoModelForSequenceClassification, tiny_bert) is None

    def test_again_the_same(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Every process of a job has to draw the same."""
        model = with_classes(tmp_path / "model", tiny_bert, ["x", "y"])
        run = make_run(tmp_path / "run", model, FULL, training={"maxSteps": 1})
        torch.rand(3)
        one = loaded(run)[1]
        torch.rand(5)
        assert torch.equal(one, loaded(run)[1])

    def test_buffers_stay(self, tmp_path: Path) -> None:
        """Rotary frequencies are computed, not drawn."""
        model = AutoModelForSequenceClassification.from_pretrained(make_model(tmp_path / "model", "llama"))
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        draw_anew(model, {"score.weight"})
        assert before
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
