"""A teacher is taken only when its answers can be compared with the student's; else it is said why, and what to do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Termination
from finetune_trainer.batching import NO_UNIT, UNLABELED, Example
from finetune_trainer.distillation.cache import num_units
from finetune_trainer.distillation.objective import DistillationObjective
from finetune_trainer.distillation.student import keep_layers
from finetune_trainer.distillation.teacher import check_tokenizers
from finetune_trainer.errors import TrainerError
from trainer.distilling import RESPONSE, student_run, terms_and_gradient
from trainer.runs import CPU, complete, finish, make_loop, output
from trainer.tiny import HOULSBY, KINDS, make_model, make_rows, make_run, write_rows
from trainer.tiny_lm import make_chats, make_lm, make_lm_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), num_hidden_layers=4)


def made_teacher(directory: Path, base: Path, labels: tuple[str, ...] = ("bad", "good"), **config: Any) -> Path:
    """A model with a head of these labels; its weights are random, which is enough to be asked."""
    torch.manual_seed(3)
    names = dict(enumerate(labels))
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(labels),
        id2label=names,
        label2id={name: number for number, name in names.items()},
        **config,
    )
    torch.nn.init.normal_(model.classifier.weight)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


def saved_with_labels(directory: Path, base: Path) -> Path:
    """Any model with a new head for the tiny rows."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


STATELESS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5Model",
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "funnel": (
        "FunnelModel",
        {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1},
    ),
}


def refused(tmp_path: Path, base: Path, teacher: Path, **fields: Any) -> Termination:
    termination = finish(student_run(tmp_path / "run", base, teacher, **fields))
    assert termination.exit_code == ExitCode.MODEL_INVALID, termination.message
    assert termination.message.startswith("spec.strategy.distillation.teacher: ")
    assert termination.hint
    return termination


class TestLabels:
    @pytest.mark.parametrize("labels", [("good", "bad"), ("Good", "BAD")])
    def test_another_order_is_put_right(self, base: Path, tmp_path: Path, labels: tuple[str, ...]) -> None:
        """The same teacher with its classes turned round answers the same."""
        straight = made_teacher(tmp_path / "straight", base)
        turned = made_teacher(tmp_path / "turned", base, labels)
        weights = load_file(straight / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name].flip(0)
        save_file(weights, turned / "model.safetensors", metadata={"format": "pt"})
        answers = []
        for teacher in (straight, turned):
            loop = make_loop(student_run(tmp_path / teacher.name / "run", base, teacher, training={"maxSteps": 1}))
            assert isinstance(loop.objective, DistillationObjective)
            known = loop.objective.teacher.of(range(20), 2, CPU)  # type: ignore[union-attr]
            assert isinstance(known, torch.Tensor)
            answers.append(known)
        assert torch.equal(answers[0], answers[1])
        assert not torch.allclose(answers[0], answers[0].flip(1))

    @pytest.mark.parametrize("labels", [("bad", "great"), ("bad", "good", "odd"), ("LABEL_0", "LABEL_1")])
    def test_other_labels(self, base: Path, tmp_path: Path, labels: tuple[str, ...]) -> None:
        teacher = made_teacher(tmp_path / "teacher", base, labels)
        termination = refused(tmp_path, base, teacher)
        for label in (*labels, "good"):
            assert repr(label) in termination.message

    def test_no_head(self, base: Path, tmp_path: Path) -> None:
        """A pretrained model that was never tuned would teach random numbers."""
        teacher = made_teacher(tmp_path / "teacher", base)
        weights = load_file(teacher / "model.safetensors")
        del weights["classifier.weight"]
        save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
        termination = refused(tmp_path, base, teacher)
        assert "classifier.weight" in termination.message
        assert "tune the teacher" in termination.hint


class TestTokenizers:
    def tokenizer(self, base: Path) -> PreTrainedTokenizerFast:
        found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(base)
        return found

    def changed(self, base: Path, directory: Path, change: str) -> PreTrainedTokenizerFast:
        self.tokenizer(base).save_pretrained(directory)
        path = directory / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        if change == "two tokens changed places":
            vocabulary["film"], vocabulary["story"] = vocabulary["story"], vocabulary["film"]
        elif change == "a token more":
            vocabulary["cinema"] = len(vocabulary)
        elif change == "upper case is kept":
            content["normalizer"]["lowercase"] = False
        path.write_text(json.dumps(content))
        if change == "another padding":
            settings = json.loads((directory / "tokenizer_config.json").read_text())
            settings["pad_token"] = "[UNK]"
            (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        return self.tokenizer(directory)

    def test_equal_ones(self, base: Path, tmp_path: Path) -> None:
        check_tokenizers(self.tokenizer(base), self.changed(base, tmp_path, "nothing"))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("two tokens changed places", "with the same number"),
            ("a token more", "tokens, of which"),
            ("upper case is kept", "it makes other tokens of"),
            ("another padding", "the pad token is 1, the student's is 0"),
        ],
    )
    def test_different_ones(self, base: Path, tmp_path: Path, change: str, said: str) -> None:
        with pytest.raises(TrainerError) as caught:
            check_tokenizers(self.tokenizer(base), self.changed(base, tmp_path, change))
        assert said in caught.value.message
        assert "label the rows with the teacher" in caught.value.hint

    def test_refused_by_the_run(self, base: Path, tmp_path: Path) -> None:
        teacher = made_teacher(tmp_path / "teacher", base)
        self.changed(base, teacher, "upper case is kept")
        assert "its tokenizer is not the student's" in refused(tmp_path, base, teacher).message


class TestDirectories:
    def test_none(self, base: Path, tmp_path: Path) -> None:
        assert "no such model directory" in refused(tmp_path, base, tmp_path / "nowhere").message

    def test_adapter(self, base: Path, tmp_path: Path) -> None:
        (tmp_path / "teacher").mkdir()
        (tmp_path / "teacher" / "adapter_config.json").write_text("{}")
        assert "merge: true" in refused(tmp_path, base, tmp_path / "teacher").hint

    @pytest.mark.usefixtures("unchecked_export")
    def test_output_of_an_adapter_job(self, base: Path, tmp_path: Path) -> None:
        """It comes with code of its own, which is not run, and with a base that it does not hold."""
        run = make_run(tmp_path / "adapter", base, HOULSBY, training={"maxSteps": 1})
        complete(run)
        termination = refused(tmp_path, base, output(run))
        assert "the output of an adapter job, not a whole model" in termination.message
        assert "merge: true" in termination.hint

    def test_too_short(self, base: Path, tmp_path: Path) -> None:
        short = make_model(tmp_path / "short", max_position_embeddings=16)
        teacher = made_teacher(tmp_path / "teacher", short)
        termination = refused(tmp_path, base, teacher)
        assert "takes at most 16 tokens, but the longest training row has" in termination.message
        assert "maxLength" in termination.hint

    def test_attention_that_cannot_be_seen(self, base: Path, tmp_path: Path) -> None:
        saved_with_labels(tmp_path / "teacher", make_model(tmp_path / "deberta", "deberta-v2"))
        run = student_run(tmp_path / "run", base, tmp_path / "teacher", {"relation": {"selfAttention": "1"}})
        termination = finish(run)
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "the attention of the teacher (deberta-v2) cannot be seen" in termination.message
        assert "selfAttention" in termination.hint

    @pytest.mark.parametrize("terms", [{"feature": {}}, {"relation": {"layers": "1"}}, {"relation": {"distance": "1"}}])
    @pytest.mark.parametrize(("kind", "shape"), STATELESS.items())
    def test_states_that_cannot_be_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: Any, terms: dict[str, Any]
    ) -> None:
        """T5's classifier shows those of two stacks, and Funnel's tokens become fewer from layer to layer."""
        monkeypatch.setitem(KINDS, kind, shape)
        model = make_model(tmp_path / "model", kind)
        teacher = saved_with_labels(tmp_path / "teacher", model)
        strategy = {"distillation": {"teacher": {"uri": f"file://{teacher}"}, **terms}}
        termination = finish(make_run(tmp_path / "run", model, strategy, training={"maxSteps": 1}))
        assert termination.exit_code == ExitCode.MODEL_INVALID, termination.message
        assert f"the states of the student ({kind}) cannot be compared" in termination.message
        assert "relation's distance, angle and layers" in termination.hint


class TestOtherKinds:
    """A teacher that tells texts apart by token types, and a student that has none."""

    def strategy(self, teacher: Path) -> dict[str, Any]:
        return {"distillation": {"teacher": {"uri": f"file://{teacher}"}, "response": {}, "feature": {}}}

    def test_single_texts(self, base: Path, tmp_path: Path) -> None:
        student = make_model(tmp_path / "student", "distilbert")
        teacher = made_teacher(tmp_path / "teacher", base)
        loop = make_loop(make_run(tmp_path / "run", student, self.strategy(teacher), training={"maxSteps": 1}))
        loop.train_step()

    def test_pairs(self, base: Path, tmp_path: Path) -> None:
        student = make_model(tmp_path / "student", "distilbert")
        teacher = made_teacher(tmp_path / "teacher", base)
        run = make_run(tmp_path / "run", student, self.strategy(teacher), data=with_pairs(tmp_path / "run"))
        termination = finish(run)
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "token_type_ids, which the student does not have" in termination.message


def with_pairs(directory: Path) -> dict[str, Any]:
    """Data whose rows are two texts."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, seed in (("train", 1), ("evaluation", 2)):
        rows = [{**row, "other": "the film"} for row in make_rows(24, seed=seed)]
        write_rows(directory / f"{name}-pairs.jsonl", rows)
    return {
        "train": {"uri": "file://train-pairs.jsonl"},
        "evaluation": {"uri": "file://evaluation-pairs.jsonl"},
        "columns": {"textPair": "other"},
    }


def test_padding_of_a_vocabulary_is_not_compared(tmp_path: Path) -> None:
    """The same teacher with 13 rows more, which no token has, teaches the same."""
    base = make_lm(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(make_lm(tmp_path / "teacher", seed=1))
    model.resize_token_embeddings(model.config.vocab_size + 13)
    with torch.no_grad():
        model.get_input_embeddings().weight[-13:] = 5.0  # of an output that would win, were it looked at
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "padded")
    found = []
    for name, response in itertools.product(("teacher", "padded"), ({}, {"topK": 5})):
        strategy = {"distillation": {"teacher": {"uri": f"file://{tmp_path / name}"}, "response": response}}
        run = make_lm_run(tmp_path / f"run-{name}-{len(response)}", base, strategy, make_chats(8))
        found.append(terms_and_gradient(make_loop(run), [0, 1, 2, 3], 4)[0]["response"])
    assert found[:2] == pytest.approx(found[2:], rel=1e-4)
    assert min(found) > 0.01


_LAYERS = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
# Kinds whose configuration has a list with an entry a layer.
LISTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neo": (
        "GPTNeoModel",
        {"hidden_size": 32, "num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]]}
        | {"window_size": 4, "initializer_range": 0.15},
    ),
    "gemma3_text": (
        "Gemma3TextModel",
        _LAYERS
        | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4, "initializer_range": 0.15}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "longformer": ("LongformerModel", _LAYERS | {"attention_window": [4, 8, 4, 16], "initializer_range": 0.15}),
}


@pytest.mark.parametrize(
    ("target", "expected"), [(1, 1), (UNLABELED, 1), ((0, 3), 2), ([NO_UNIT, 2, UNLABELED, NO_UNIT], 2)]
)
def test_number_of_units(target: Any, expected: int) -> None:
    assert num_units(Example([1, 2, 3, 4], None, target)) == expected


class TestStudentLayers:
    def run(self, tmp_path: Path, base: Path, layers: list[int]) -> Any:
        teacher = made_teacher(tmp_path / "teacher", base)
        strategy = {"distillation": {"teacher": {"uri": f"file://{teacher}"}, "studentLayers": layers, **RESPONSE}}
        return make_run(tmp_path / "run", base, strategy, training={"maxSteps": 1})

    def test_weights_are_those_of_the_chosen_layers(self, base: Path, tmp_path: Path) -> None:
        model = make_loop(self.run(tmp_path, base, [3, 1])).model
        pretrained = load_file(base / "model.safetensors")
        weights = dict(model.named_parameters())
        compared = 0
        for kept, original in enumerate((3, 1)):
            prefix = f"encoder.layer.{original}."
            for name, tensor in pretrained.items():
                if name.startswith(prefix):
                    own = weights[f"bert.encoder.layer.{kept}.{name.removeprefix(prefix)}"]
                    assert torch.equal(own, tensor), name
                    compared += 1
        assert compared == 32
        assert not any(name.startswith("bert.encoder.layer.2.") for name in weights)
        assert torch.equal(
            weights["bert.embeddings.word_embeddings.weight"], pretrained["embeddings.word_embeddings.weight"]
        )

    @pytest.mark.parametrize(("kind", "shape"), LISTED.items())
    def test_what_the_configuration_lists_for_each_layer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[str, dict[str, Any]]
    ) -> None:
        """Loaded again, the layers that are left see as far as they did."""
        monkeypatch.setitem(KINDS, kind, shape)
        directory = make_model(tmp_path / "model", kind)
        inputs = {"input_ids": torch.arange(5, 37)[None]}
        model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        whole = model(**inputs).logits
        keep_layers(model, [0, 1, 2, 3])
        assert torch.equal(model(**inputs).logits, whole)
        keep_layers(model, [3, 0])
        expected = model(**inputs).logits
        assert not torch.allclose(expected, whole)
        model.save_pretrained(tmp_path / "student")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
        assert torch.equal(again(**inputs).logits, expected)

    def test_what_a_configuration_cannot_say(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By how far a layer sees alone it differs from the one that would be loaded in its place."""
        shape = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
        monkeypatch.setitem(KINDS, "longformer", ("LongformerModel", shape | {"attention_window": [4, 8, 4, 8]}))
        directory = make_model(tmp_path / "model", "longformer")
        model = AutoModelForSequenceClassification.from_pretrained(directory)
        next(module for path, module in model.named_modules() if path.endswith("layer.1.attention.self")).scaling = 2.0
        with pytest.raises(TrainerError, match="its configuration cannot describe them"):
            keep_layers(model, [1, 3])

    @pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
    def test_a_configuration_that_counts_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
    ) -> None:
        """Of some heads, Funnel's model has one list of as many layers as its configuration counts: the decoder's."""
        shape = {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64}
        monkeypatch.setitem(KINDS, "funnel", ("FunnelModel", shape))
        directory = make_model(tmp_path / "model", "funnel")
        model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(directory)
        with pytest.raises(TrainerError, match="layers cannot be chosen of funnel: its ") as caught:
            keep_layers(model, [1])
        assert caught.value.code == ExitCode.MODEL_INVALID

    def test_more_than_there_are(self, base: Path, tmp_path: Path) -> None:
        termination = finish(self.run(tmp_path, base, [0, 4]))
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert "studentLayers has 4, but the model has 4 layers" in termination.message
        assert "0 to 3" in termination.hint

    def test_map_beyond_the_layers(self, base: Path, tmp_path: Path) -> None:
        teacher = made_teacher(tmp_path / "teacher", base)
        pairs = [{"student": 1, "teacher": 4}]
        termination = finish(student_run(tmp_path / "run", base, teacher, {"feature": {"layerMap": pairs}}))
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert "the student has 2 layers and the teacher 4" in termination.message
