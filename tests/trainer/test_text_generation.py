"""Text generation end to end: packed or padded, split or whole, the loss is that of the reference; ends are learnt."""

import hashlib
import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import losses
from finetune_trainer.batching import NO_UNIT, UNLABELED, Batch, Example
from finetune_trainer.data.packing import can_pack, collate_tokens, filled_rows, targets_of
from finetune_trainer.objective import TaskLoss
from finetune_trainer.perplexity import PerplexityMetrics
from finetune_trainer.tasks.text_generation import TextGeneration
from trainer.loading_lines import names_left
from trainer.runs import complete, finish, make_loop, output
from trainer.tiny import FULL, LORA
from trainer.tiny_lm import CHATML, EOS, IM_END, KINDS, MARKED, make_chats, make_lm, make_lm_run, make_tokenizer

PACKING = [kind for kind in KINDS if kind != "bloom"]
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("models") / "llama")


def read(run: Run) -> TextGeneration:
    return TextGeneration.read(run, run.local_path(run.spec.model.uri))


def ready(tmp_path: Path, model: Path, rows: list[dict[str, Any]], **fields: Any) -> tuple[TextGeneration, Any]:
    """A task and its model, in the mode of evaluation."""
    task = read(make_lm_run(tmp_path, model, fields.pop("strategy", FULL), rows, **fields))
    return task, task.load_model().model.eval()


def reference_losses(model: PreTrainedModel, example: Example) -> list[float]:
    """Each learnt token's loss, by hand: one example alone, one token after the other."""
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
    targets = targets_of(example)
    return [-logits[place].log_softmax(-1)[token].item() for place, token in enumerate(targets) if token >= 0]


class TestRows:
    @given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
    def test_filled_rows_keep_the_order_and_never_exceed_the_longest(self, lengths: list[int]) -> None:
        rows = filled_rows(lengths)
        assert [number for row in rows for number in row] == list(range(len(lengths)))
        assert all(sum(lengths[number] for number in row) <= max(lengths) for row in rows)
        for row, following in itertools.pairwise(rows):  # what would have fitted was put in
            assert sum(lengths[number] for number in row) + lengths[following[0]] > max(lengths)

    def test_a_batch_written_by_hand(self) -> None:
        examples = [
            Example([1, 2], None, [2, NO_UNIT]),
            Example([3, 4, 5], None, [NO_UNIT, 5, NO_UNIT]),
            Example([6, 7, 8, 9], None, [7, 8, 9, NO_UNIT]),
        ]
        packed = collate_tokens([*examples[:2], *examples[2:], examples[0]], 0, packs=True, selects=True)
        assert packed.inputs["input_ids"].tolist() == [[1, 2, 0, 0], [3, 4, 5, 0], [6, 7, 8, 9], [1, 2, 0, 0]]
        assert "attention_mask" in packed.inputs  # nothing fits beside another
        packed = collate_tokens([examples[0], examples[0], examples[1], examples[2]], 0, packs=True, selects=True)
        assert packed.inputs["input_ids"].tolist() == [[1, 2, 1, 2], [3, 4, 5, 0], [6, 7, 8, 9]]
        assert packed.inputs["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0], [0, 1, 2, 3]]
        assert packed.inputs["use_cache"] is False
        assert packed.inputs["logits_to_keep"].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 0]]
        assert packed.units.tolist() == [0, 2, 5, 8, 9, 10]  # type: ignore[union-attr]
        assert (packed.targets.tolist(), packed.num_tokens) == ([2, 2, 5, 7, 8, 9], 11)


class TestPacking:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("kind", PACKING)
    def test_each_example_has_the_logits_it_has_alone(self, tmp_path: Path, kind: str, attention: str) -> None:
        task, model = ready(tmp_path, make_lm(tmp_path / "base", kind), make_chats(16))
        model.set_attn_implementation(attention)
        examples = sorted(task.train, key=lambda example: len(example.input_ids))
        batch = task.collate(examples)
        assert "attention_mask" not in batch.inputs
        assert len(batch.inputs["input_ids"]) < len(examples)
        with torch.no_grad():
            found = task.unit_logits(model(**batch.inputs), batch)
            alone = [
                model(input_ids=torch.tensor([example.input_ids])).logits[0][torch.tensor(targets_of(example)) >= 0]
                for example in examples
            ]
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        "strategy", [LORA, {"adapter": {"type": "Bottleneck", "reductionFactor": 4}}], ids=["lora", "bottleneck"]
    )
    def test_nor_has_it_others_with_adapters_around_the_model(
        self, tmp_path: Path, llama: Path, strategy: dict[str, Any]
    ) -> None:
        loop = make_loop(make_lm_run(tmp_path, llama, strategy, make_chats(16)))
        for _ in range(2):
            loop.train_step()
        model, task = loop.model.eval(), loop.task
        examples = sorted(task.train, key=lambda example: len(example.input_ids))
        batch = task.collate(examples)
        assert "position_ids" in batch.inputs
        with torch.no_grad():
            found = task.unit_logits(model(**batch.inputs), batch)
            alone = [
                model(input_ids=torch.tensor([example.input_ids])).logits[0][torch.tensor(targets_of(example)) >= 0]
                for example in examples
            ]
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-5)

    def test_what_an_example_says_does_not_reach_its_neighbours(self, tmp_path: Path, llama: Path) -> None:
        task, model = ready(tmp_path, llama, [{"text": "the film"}, {"text": "it is"}, {"text": "a warm house in it"}])
        first, second, third = task.train
        other = Example([*first.input_ids[:-1], 50], None, first.target)
        with torch.no_grad():
            batches = [task.collate([one, second, third]) for one in (first, other)]
            logits = [task.unit_logits(model(**batch.inputs), batch) for batch in batches]
        assert "position_ids" in batches[0].inputs
        own = task.num_units([first])
        torch.testing.assert_close(logits[0][own:], logits[1][own:], rtol=0, atol=0)

    def test_a_model_that_cannot_is_padded_and_said_so(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        task, model = ready(tmp_path, make_lm(tmp_path / "base", "bloom"), make_chats(16))
        assert not can_pack(model)
        assert "BloomForCausalLM cannot tell apart examples that share a row" in caplog.text
        batch = task.collate(task.train)
        assert batch.inputs["attention_mask"].shape == (16, max(len(one.input_ids) for one in task.train))

    @pytest.mark.parametrize(
        "strategy",
        [
            {"promptTuning": {"type": "Prompt", "numVirtualTokens": 4}},
            {"distillation": {"teacher": {"uri": "file:///x"}, "feature": {}}},
        ],
        ids=["prompt", "distillation"],
    )
    def test_not_where_examples_need_a_row_of_their_own(
        self, tmp_path: Path, llama: Path, strategy: dict[str, Any]
    ) -> None:
        task, _ = ready(tmp_path, llama, make_chats(16), strategy=strategy)
        batch = task.collate(task.train)
        assert batch.inputs["attention_mask"].shape[0] == 16
        assert ("logits_to_keep" in batch.inputs) == ("distillation" in strategy)

    def test_only_learnt_tokens_cost_logits(self, tmp_path: Path, llama: Path) -> None:
        task, model = ready(tmp_path, llama, make_chats(16))
        batch = task.collate(task.train)
        assert model(**batch.inputs).logits.shape == (task.num_units(task.train), model.config.vocab_size)
        assert task.num_units(task.train) < batch.num_tokens / 2


def loss_and_gradient(
    task: TextGeneration, model: PreTrainedModel, examples: Sequence[Example], size: int
) -> tuple[float, dict[str, Tensor]]:
    """Of one optimizer step, in micro-batches."""
    model.zero_grad()
    loss = 0.0
    for start in range(0, len(examples), size):
        batch = task.collate(examples[start : start + size])
        [term] = TaskLoss(task).terms(model, batch, range(start, start + size), examples, 0).values()
        term.backward()  # type: ignore[no-untyped-call]
        loss += term.item()
    return loss, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


class TestLoss:
    @pytest.mark.parametrize("kind", PACKING)
    def test_neither_packing_nor_padding_nor_the_split_changes_it(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, model = ready(tmp_path, make_lm(tmp_path / "base", kind), make_chats(12))
        examples = sorted(task.train, key=lambda example: len(example.input_ids))
        wanted = [loss for example in examples for loss in reference_losses(model, example)]
        packed = {size: loss_and_gradient(task, model, examples, size) for size in (12, 5, 1)}
        monkeypatch.setattr(task, "_packs", False)
        padded = {size: loss_and_gradient(task, model, examples, size) for size in (12, 5)}
        monkeypatch.setattr(task, "_selects", False)
        plain = {12: loss_and_gradient(task, model, examples, 12)}
        first = packed[1]
        for found in (packed, padded, plain):
            for loss, gradient in found.values():
                assert loss == pytest.approx(sum(wanted) / len(wanted), rel=LOSS_TOLERANCE)
                assert gradient.keys() == first[1].keys()
                for name, one in gradient.items():
                    scale = first[1][name].abs().max().item()
                    torch.testing.assert_close(one, first[1][name], rtol=0, atol=GRADIENT_TOLERANCE * max(scale, 1e-2))

    def test_is_that_of_transformers_where_everything_is_learnt(self, tmp_path: Path, llama: Path) -> None:
        task, model = ready(tmp_path, llama, [{"text": "the film is warm and bright"}])
        ids = torch.tensor([task.train[0].input_ids])
        found, _ = loss_and_gradient(task, model, task.train, 1)
        assert found == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=LOSS_TOLERANCE)

    def test_is_that_of_transformers_where_a_completion_is_learnt(self, tmp_path: Path, llama: Path) -> None:
        task, model = ready(tmp_path, llama, [{"prompt": "the film", "completion": " is warm and bright"}])
        ids = torch.tensor([task.train[0].input_ids])
        labels = ids.clone()
        labels[0, : len(task.tokenizer("the film")["input_ids"])] = -100
        found, _ = loss_and_gradient(task, model, task.train, 1)
        assert found == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=LOSS_TOLERANCE)


class TestPerplexity:
    def test_is_of_tokens_and_not_of_batches(self, tmp_path: Path, llama: Path) -> None:
        task, model = ready(tmp_path, llama, make_chats(12))
        wanted = [loss for example in task.train for loss in reference_losses(model, example)]
        mean = sum(wanted) / len(wanted)
        for size in (1, 5, 12):
            metrics = task.new_metrics()
            for start in range(0, 12, size):
                chunk = task.train[start : start + size]
                batch = task.collate(chunk)
                with torch.no_grad():
                    logits = task.unit_logits(model(**batch.inputs), batch)
                    loss_sum = losses.cross_entropy(logits, batch.targets, 1.0).item()
                metrics.update(chunk, batch, logits, loss_sum)
            found = metrics.compute()
            assert found["loss"] == pytest.approx(mean, rel=1e-5)
            assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)

    @pytest.mark.parametrize(("loss", "finite"), [(5000.0, True), (math.inf, True), (math.nan, False)])
    def test_never_overflows_and_never_hides_nan(self, loss: float, finite: bool) -> None:
        metrics = PerplexityMetrics()
        metrics.update([], Batch({}, torch.tensor([3, UNLABELED, 4]), 3), torch.zeros(3, 5), 2 * loss)
        assert math.isfinite(metrics.compute()["perplexity"]) == finite


class TestRowsThatCannotBeLearnt:
    LONG = " ".join(["film"] * 60)

    def test_all_is_refused_before_the_first_step(self, tmp_path: Path, llama: Path) -> None:
        rows = [{"prompt": f"{self.LONG} {number}", "completion": " good"} for number in range(5)]
        run = make_lm_run(tmp_path, llama, FULL, rows, data={"maxLength": 32})
        termination = finish(run)
        assert termination.exit_code == ExitCode.DATA_INVALID
        assert (
            "5 with nothing to learn within maxLength (32 tokens) (line 1, line 2, line 3, ...)" in termination.message
        )
        assert "all rows are unusable, such as line 1: 'film film" in termination.message
        assert "raise data.maxLength (now 32)" in termination.hint
        assert not Path(run.work_dir, "checkpoints").exists()

    def test_a_template_that_marks_nothing_is_refused(self, tmp_path: Path) -> None:
        empty = MARKED.replace("{{ message['content'] }}{% endgeneration %}", "{% endgeneration %}")
        model = make_lm(tmp_path / "base", tokenizer=make_tokenizer(empty.replace("eos_token + ", "")))
        termination = finish(make_lm_run(tmp_path, model, FULL, make_chats(5)))
        assert termination.exit_code == ExitCode.DATA_INVALID
        assert "with nothing to learn (line 1" in termination.message

    def test_some_are_dropped_and_counted(self, tmp_path: Path, llama: Path) -> None:
        rows = [{"prompt": "the", "completion": " film"} for _ in range(3)]
        rows += [{"prompt": self.LONG, "completion": " good"}, {"prompt": "the", "completion": f" {self.LONG}"}]
        run = make_lm_run(tmp_path, llama, FULL, rows, rows[:1], data={"maxLength": 32, "maxDroppedFraction": "0.5"})
        task = read(run)
        assert len(task.train) == 4
        assert task.data_report[0] == (
            "file://train.jsonl: 4 rows kept of 5 read; dropped 1: 1 with nothing to learn within maxLength (32 tokens)"
            " (line 4); 1 truncated"
        )
        assert len(task.train[3].input_ids) == 32
        assert task.tokenizer.eos_token_id not in targets_of(task.train[3])  # it did not end there

    def test_long_plain_text_is_learnt_in_pieces(self, tmp_path: Path, llama: Path) -> None:
        rows = [{"text": "the film"}, {"text": " ".join(["film", "house", "is", "warm"] * 20)}]
        run = make_lm_run(tmp_path, llama, FULL, rows, rows[:1], data={"maxLength": 32})
        task = read(run)
        assert "2 rows kept of 2 read; 1 longer than maxLength, in pieces (line 2)" in task.data_report[0]
        whole = [*task.tokenizer(rows[1]["text"])["input_ids"], task.tokenizer.eos_token_id]
        pieces = [example for example in task.train if example.row == 1]
        assert [token for piece in pieces for token in targets_of(piece) if token != NO_UNIT] == whole[1:]
        assert [len(piece.input_ids) for piece in pieces[:-1]] == [32] * (len(pieces) - 1)
        assert len(pieces) > 2

    def test_too_many_fail_the_job(self, tmp_path: Path, llama: Path) -> None:
        rows = [{"prompt": "the", "completion": " film"}, {"prompt": self.LONG, "completion": " good"}]
        termination = finish(make_lm_run(tmp_path, llama, FULL, rows, rows[:1], data={"maxLength": 32}))
        assert termination.exit_code == ExitCode.DATA_INVALID
        assert "50.0% of the rows are unusable" in termination.message
        assert "maxDroppedFraction (now 0.05)" in termination.hint


class TestModel:
    def test_a_pretrained_output_layer_is_no_new_head(self, tmp_path: Path) -> None:
        for kind in ("llama", "untied"):
            task = read(make_lm_run(tmp_path / kind, make_lm(tmp_path / kind / "base", kind), FULL, make_chats(4)))
            assert task.load_model().head == frozenset()

    def test_an_output_layer_that_the_checkpoint_lacks_is_one(self, tmp_path: Path) -> None:
        base = make_lm(tmp_path / "base", "untied")
        body = AutoModelForCausalLM.from_pretrained(base).model
        body.save_pretrained(base)
        loaded = read(make_lm_run(tmp_path, base, FULL, make_chats(4))).load_model()
        assert loaded.head == {"lm_head.weight"}

    def test_the_report_has_the_templates_digest(self, tmp_path: Path, llama: Path) -> None:
        digest = hashlib.sha256(CHATML.encode()).hexdigest()
        task = read(make_lm_run(tmp_path / "chats", llama, FULL, make_chats(4)))
        assert task.data_report[-1] == f"chat template: sha256 {digest[:16]}"
        task = read(make_lm_run(tmp_path / "texts", llama, FULL, [{"text": "the film"}]))
        assert "chat template" not in task.data_report[-1]

    def test_generation_stops_where_the_turns_ended(self, tmp_path: Path, llama: Path) -> None:
        task, model = ready(tmp_path, llama, make_chats(4))
        ends = sorted(task.tokenizer.convert_tokens_to_ids([EOS, IM_END]))
        assert model.generation_config.eos_token_id == ends

    def test_units_of_rows_without_labels_are_all_their_tokens(self, tmp_path: Path, llama: Path) -> None:
        (tmp_path / "more.jsonl").write_text('{"prompt": "the film"}\n')
        strategy = {"distillation": {"teacher": {"uri": f"file://{llama}"}, "response": {}}}
        run = make_lm_run(tmp_path, llama, strategy, make_chats(4), data={"unlabeled": {"uri": "file://more.jsonl"}})
        task = read(run)
        example = task.train[-1]
        assert task.tokenizer.decode(example.input_ids) == "the film"
        assert targets_of(example) == [UNLABELED] * len(example.input_ids)
        assert task.num_units([example]) == 0
        batch = task.collate([example])
        assert batch.targets.tolist() == targets_of(example)


class TestTraining:
    ANSWERS = ("warm light", "a dull story", "the city")

    def test_the_end_is_learnt_where_it_is_the_padding(self, tmp_path: Path) -> None:
        """Where labels are masked by the padding token's number, such a model never stops."""
        base = make_lm(tmp_path / "base", tokenizer=make_tokenizer(MARKED, pad=None))
        rows = [
            {"messages": [{"role": "user", "content": str(number)}, {"role": "assistant", "content": answer}]}
            for number, answer in enumerate(self.ANSWERS)
        ]
        settings = {"maxSteps": 60, "learningRate": "1e-2", "batchSize": 3}
        run = make_lm_run(tmp_path, base, FULL, rows, training=settings)
        termination = complete(run)
        assert termination.result is not None
        assert termination.result.after["perplexity"] < 1.1 < termination.result.before["perplexity"]
        assert termination.result.baseline is None
        tokenizer = AutoTokenizer.from_pretrained(output(run))
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        model = AutoModelForCausalLM.from_pretrained(output(run))
        for number, answer in enumerate(self.ANSWERS):
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": str(number)}], add_generation_prompt=True, return_tensors="pt"
            )["input_ids"]
            written = model.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :]
            assert tokenizer.decode(written) == answer + EOS

    @pytest.mark.parametrize(
        ("kind", "strategy"),
        [("llama", FULL), ("untied", FULL), ("gpt2", LORA), ("untied", LORA)],
        ids=["tied-full", "untied-full", "tied-lora", "untied-lora"],
    )
    def test_an_export_says_what_the_trained_model_said(
        self, tmp_path: Path, kind: str, strategy: dict[str, Any]
    ) -> None:
        """Its perplexity, computed by hand from the reloaded model, is the one that was reported."""
        base = make_lm(tmp_path / "base", kind)
        run = make_lm_run(tmp_path, base, strategy, make_chats(16), make_chats(6, seed=1))
        termination = complete(run)
        assert termination.result is not None
        assert termination.result.after["perplexity"] < termination.result.before["perplexity"]
        known = names_left(run)
        model = known["model"]
        assert known["ends"] == known["tokenizer"].convert_tokens_to_ids([EOS, IM_END])
        if strategy is LORA:
            assert {"model.safetensors", "pytorch_model.bin"}.isdisjoint(path.name for path in output(run).iterdir())
        wanted = [loss for example in read(run).evaluation for loss in reference_losses(model.eval(), example)]
        assert termination.result.after["loss"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)

    @pytest.mark.usefixtures("unchecked_export")
    @pytest.mark.parametrize(
        "strategy",
        [
            {"full": {"l2ToStart": "0.01", "gradualUnfreezing": {"everySteps": 2}}},
            {"adapter": {"type": "Bottleneck", "reductionFactor": 4}},
            {"promptTuning": {"numVirtualTokens": 4}},
            {"promptTuning": {"type": "Prefix", "numVirtualTokens": 4}},
            {"distillation": {"teacher": {"uri": "file://teacher"}, "response": {}, "feature": {}}},
        ],
        ids=["regularised", "bottleneck", "prompt", "prefix", "distillation"],
    )
    def test_every_strategy_learns_with_replay_and_retention(
        self, tmp_path: Path, llama: Path, strategy: dict[str, Any]
    ) -> None:
        """Their own tests say how well; here it is that batches of tokens suit them all."""
        make_lm(tmp_path / "teacher", seed=7)
        (tmp_path / "more.jsonl").write_text('{"prompt": "the film"}\n{"text": "it is warm"}\n')
        (tmp_path / "old.jsonl").write_text('{"prompt": "the film", "completion": " is warm"}\n')
        data: dict[str, Any] = {"replay": {"source": {"uri": "file://old.jsonl"}, "fraction": "0.2"}}
        if "distillation" in strategy:
            data["unlabeled"] = {"uri": "file://more.jsonl"}
        judged = {"retention": {"data": {"uri": "file://old.jsonl"}, "maxDrop": "1"}}
        run = make_lm_run(
            tmp_path, llama, strategy, make_chats(20), make_chats(6, seed=1), data=data, evaluation=judged,
            training={"learningRate": "1e-2", "maxSteps": 8},
        )  # fmt: skip
        result = complete(run).result
        assert result is not None
        assert result.after["loss"] < result.before["loss"] or "distillation" in strategy
        assert read(run).train[20].row == 0  # the replayed rows come after the own ones

    def test_a_step_of_the_loop_is_the_same_in_any_split(self, tmp_path: Path, llama: Path) -> None:
        found = []
        for size in (8, 3, 1):
            run = make_lm_run(
                tmp_path / str(size), llama, FULL, make_chats(8), training={"microBatchSize": size, "maxSteps": 3}
            )
            loop = make_loop(run)
            found.append([loop.train_step() for _ in range(3)])
        assert found[1] == pytest.approx(found[0], rel=1e-5)
        assert found[2] == pytest.approx(found[0], rel=1e-5)
