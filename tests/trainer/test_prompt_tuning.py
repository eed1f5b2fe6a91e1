"""Soft prompts: where they stand, what they start from, what is trained, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune_api.v1alpha1.strategy import PromptTuningStrategy
from finetune_trainer.batching import Batch
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.prompts.initial import initial_embeddings
from finetune_trainer.tasks import Task
from trainer.extraction import asking_run, tagging_run
from trainer.runs import make_loop
from trainer.tiny import KINDS, make_model, make_run

TYPES = ("Prompt", "Prefix", "PTuning")
DECODERS = ("llama", "gpt2")
OWN_ATTENTION = ("deberta-v2", "mpnet")
TEXT = "the film was fresh and odd"


def prompt(**settings: Any) -> dict[str, Any]:
    return {"promptTuning": {"numVirtualTokens": 6, **settings}}


def from_text(kind: str, count: int = 6) -> dict[str, Any]:
    return prompt(type=kind, initialization="Text", text=TEXT, numVirtualTokens=count)


def prepared(
    directory: Path, model: Path, strategy: dict[str, Any], make: Any = make_run, **fields: Any
) -> TrainingLoop:
    return make_loop(make(directory, model, strategy, **fields))


def plain_model(loop: TrainingLoop) -> nn.Module:
    """The model as it is without a prompt, with the very head that the loop's model starts from."""
    torch.manual_seed(loop.spec.training.seed)
    return loop.task.load_model().model.eval()


def text_tokens(task: Task, count: int = 6) -> list[int]:
    tokens = task.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    return [tokens[number % len(tokens)] for number in range(count)]


def with_tokens(inputs: dict[str, Tensor], tokens: list[int], before: int) -> dict[str, Tensor]:
    """A batch's inputs with real tokens where the prompt is."""
    put = {"input_ids": torch.tensor(tokens), "attention_mask": torch.ones(len(tokens), dtype=torch.long)}
    put["token_type_ids"] = torch.zeros(len(tokens), dtype=torch.long)
    return {
        name: torch.cat([value[:, :before], put[name].expand(len(value), -1), value[:, before:]], 1)
        for name, value in inputs.items()
    }


def prompt_weights(loop: TrainingLoop) -> Tensor:
    return loop.model.prompt().detach()


@torch.no_grad()
def unit_logits(loop: TrainingLoop, batch: Batch) -> Tensor:
    return loop.task.unit_logits(loop.model.eval()(**batch.inputs), batch)


class TestPlace:
    """A prompt that starts from a text's tokens is at first the same as those tokens in the input."""

    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("prompt_type", ["Prompt", "PTuning"])
    @torch.no_grad()
    def test_classification(self, tmp_path: Path, kind: str, prompt_type: str) -> None:
        loop = prepared(tmp_path, make_model(tmp_path / "base", kind), from_text(prompt_type))
        batch = loop.task.collate(loop.task.evaluation[:8])
        assert not batch.inputs["attention_mask"].all()
        before = 0 if kind in DECODERS else 1  # [CLS] stays first, so what is pooled is what always is
        inputs = with_tokens(batch.inputs, text_tokens(loop.task), before)
        expected = plain_model(loop)(**inputs).logits
        without = plain_model(loop)(**batch.inputs).logits
        torch.testing.assert_close(unit_logits(loop, batch), expected, rtol=0, atol=1e-5)
        assert (expected - without).abs().max() > 1e-3

    @torch.no_grad()
    def test_mean_pooling_leaves_the_prompt_out(self, tmp_path: Path) -> None:
        base = make_model(tmp_path / "base", "modernbert", classifier_pooling="mean")
        loop = prepared(tmp_path, base, from_text("Prompt"))
        batch = loop.task.collate(loop.task.evaluation[:8])
        plain = plain_model(loop)
        states = plain.model(**with_tokens(batch.inputs, text_tokens(loop.task), 1)).last_hidden_state
        own = torch.cat([states[:, :1], states[:, 7:]], 1)
        mask = batch.inputs["attention_mask"][..., None]
        pooled = (own * mask).sum(1) / mask.sum(1)
        expected = plain.classifier(plain.drop(plain.head(pooled)))
        torch.testing.assert_close(unit_logits(loop, batch), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("make", [tagging_run, asking_run], ids=["tags", "questions"])
    @torch.no_grad()
    def test_tokens_keep_their_positions(self, tiny_bert: Path, tmp_path: Path, make: Any) -> None:
        loop = prepared(tmp_path, tiny_bert, from_text("Prompt"), make)
        batch = loop.task.collate(loop.task.evaluation[:8])
        output = loop.model.eval()(**batch.inputs)
        plain = plain_model(loop)(**with_tokens(batch.inputs, text_tokens(loop.task), 1))
        names = ["logits"] if "logits" in output else ["start_logits", "end_logits"]
        for name in names:
            expected = torch.cat([plain[name][:, :1], plain[name][:, 7:]], 1)
            assert output[name].shape[:2] == batch.inputs["input_ids"].shape
            torch.testing.assert_close(output[name], expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", DECODERS)
    @torch.no_grad()
    def test_a_decoders_prefix(self, tmp_path: Path, kind: str) -> None:
        loop = prepared(tmp_path, make_model(tmp_path / "base", kind), from_text("Prefix"))
        batch = loop.task.collate(loop.task.evaluation[:8])
        expected = plain_model(loop)(**with_tokens(batch.inputs, text_tokens(loop.task), 0)).logits
        torch.testing.assert_close(unit_logits(loop, batch), expected, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_an_encoders_prefix_is_the_papers_formula(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Each layer attends to [keys; k] and [values; v], written out for BERT."""
        loop = prepared(tmp_path, tiny_bert, from_text("Prefix"))
        batch = loop.task.collate(loop.task.evaluation[:8])
        plain, prefix = plain_model(loop), prompt_weights(loop)
        inputs = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
        hidden = plain.bert.embeddings(**inputs)
        rows, length, width = hidden.shape
        mask = torch.cat([torch.ones(rows, 6), batch.inputs["attention_mask"]], 1)
        for layer, (keys, values) in zip(plain.bert.encoder.layer, prefix, strict=True):
            own = layer.attention.self
            query, key, value = (
                part(hidden).view(rows, length, 2, width // 2).transpose(1, 2)
                for part in (own.query, own.key, own.value)
            )
            key = torch.cat([keys.expand(rows, -1, -1, -1), key], 2)
            value = torch.cat([values.expand(rows, -1, -1, -1), value], 2)
            scores = query @ key.transpose(-1, -2) / (width // 2) ** 0.5
            weights = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
            attended = (weights @ value).transpose(1, 2).reshape(rows, length, width)
            hidden = layer.attention.output(attended, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        expected = plain.classifier(plain.bert.pooler(hidden))
        torch.testing.assert_close(unit_logits(loop, batch), expected, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_an_encoders_prefix_starts_from_what_it_reads(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = prepared(tmp_path, tiny_bert, from_text("Prefix"))
        plain = plain_model(loop)
        first = loop.task.train[0].input_ids[0]
        ids = torch.tensor([[first, *text_tokens(loop.task)]])
        states = plain.bert(ids, output_hidden_states=True).hidden_states
        for layer, hidden, (keys, values) in zip(plain.bert.encoder.layer, states, prompt_weights(loop), strict=False):
            for part, found in ((layer.attention.self.key, keys), (layer.attention.self.value, values)):
                expected = part(hidden)[0, 1:].view(6, 2, 16).transpose(0, 1)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("prompt_type", TYPES)
    def test_padding_changes_nothing(self, tmp_path: Path, kind: str, prompt_type: str) -> None:
        if prompt_type == "Prefix" and kind in OWN_ATTENTION:
            pytest.skip(f"{kind} takes no prefix")
        loop = prepared(tmp_path, make_model(tmp_path / "base", kind), prompt(type=prompt_type))
        examples = loop.task.evaluation[:8]
        together = unit_logits(loop, loop.task.collate(examples))
        alone = torch.cat([unit_logits(loop, loop.task.collate([example])) for example in examples])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", ["bert", "llama"])
    @pytest.mark.parametrize("prompt_type", ["Prompt", "Prefix"])
    @torch.no_grad()
    def test_given_positions_make_room_for_it(self, tmp_path: Path, kind: str, prompt_type: str) -> None:
        loop = prepared(tmp_path, make_model(tmp_path / "base", kind), prompt(type=prompt_type))
        batch = loop.task.collate(loop.task.evaluation[:8])
        rows, length = batch.inputs["input_ids"].shape
        given = loop.model.eval()(**batch.inputs, position_ids=torch.arange(length).expand(rows, -1)).logits
        torch.testing.assert_close(given, unit_logits(loop, batch), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", ["bert", "llama"])
    @pytest.mark.parametrize("prompt_type", TYPES)
    def test_in_bfloat16(self, tmp_path: Path, kind: str, prompt_type: str) -> None:
        base = make_model(tmp_path / "base", kind)
        losses = []
        for precision in ("FP32", "BF16"):
            training = {"precision": precision, "maxSteps": 3, "learningRate": "1e-2"}
            loop = prepared(tmp_path / precision, base, prompt(type=prompt_type), training=training)
            losses.append(loop.run().last["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
        assert losses[0] != losses[1]


class TestInitialization:
    def start(self, directory: Path, model: Path, **settings: Any) -> tuple[TrainingLoop, Tensor, Tensor]:
        loop = prepared(directory, model, prompt(**settings), num_labels=3)
        return loop, prompt_weights(loop), plain_model(loop).get_input_embeddings().weight.detach()

    def test_random_has_the_spread_of_the_vocabulary(self, tiny_bert: Path, tmp_path: Path) -> None:
        _, found, table = self.start(tmp_path, tiny_bert, initialization="Random", numVirtualTokens=40)
        assert found.shape == (40, 32)
        assert found.std().item() == pytest.approx(table.std().item(), rel=0.1)
        assert abs(found.mean().item()) < 0.1 * table.std().item()

    def test_vocabulary_is_words_of_the_training_rows(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop, found, table = self.start(tmp_path, tiny_bert)
        tokens = [int((table == one).all(1).nonzero()) for one in found]
        seen = {token for example in loop.task.train for token in example.input_ids}
        assert len(set(tokens)) == 6
        assert set(tokens) <= seen - set(loop.task.tokenizer.all_special_ids)

    def test_vocabulary_follows_the_seed(self, tiny_bert: Path, tmp_path: Path) -> None:
        starts = [
            prompt_weights(prepared(tmp_path / str(n), tiny_bert, prompt(), training={"seed": seed}))
            for n, seed in enumerate((1, 1, 2))
        ]
        assert torch.equal(starts[0], starts[1])
        assert not torch.equal(starts[0], starts[2])

    @pytest.mark.parametrize("count", [4, 8])
    def test_text_is_cut_or_repeated(self, tiny_bert: Path, tmp_path: Path, count: int) -> None:
        said: list[str] = []
        loop = prepared(tmp_path, tiny_bert, prompt())
        plain = plain_model(loop)
        found = start_of(loop, plain, from_text("Prompt", count), said)
        table = plain.get_input_embeddings().weight.detach()
        assert torch.equal(found, table[text_tokens(loop.task, count)])
        assert said == (["the prompt starts from the first 4 of its text's 6 tokens"] if count == 4 else [])

    def test_labels_are_means_and_the_rest_is_vocabulary(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = prepared(tmp_path, tiny_bert, prompt())
        plain = plain_model(loop)
        loop.task.labels = ["bad film", "good", "odd"]
        found = start_of(loop, plain, prompt(initialization="Labels"))
        table, ids = plain.get_input_embeddings().weight.detach(), loop.task.tokenizer.convert_tokens_to_ids
        assert torch.equal(found[0], (table[ids("bad")] + table[ids("film")]) / 2)
        assert torch.equal(found[1:3], table[[ids("good"), ids("odd")]])
        rest = [int((table == one).all(1).nonzero()) for one in found[3:]]
        assert set(rest) <= {token for example in loop.task.train for token in example.input_ids}


def start_of(loop: TrainingLoop, plain: Any, strategy: dict[str, Any], said: list[str] | None = None) -> Tensor:
    """What a prompt of embeddings starts from."""
    settings = PromptTuningStrategy.model_validate(strategy["promptTuning"])
    return initial_embeddings(settings, loop.task, plain, 42, [].append if said is None else said.append)
