"""Tagged words as examples: one unit a word, nothing lost in windows, transformers' own loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import losses
from finetune_trainer.batching import NO_UNIT, UNLABELED, Example
from finetune_trainer.evaluation import evaluate
from finetune_trainer.stop import StopFlag
from finetune_trainer.tasks import make_task
from finetune_trainer.tasks.token_classification import TokenClassification
from trainer.data_fixtures import failure, run_on, write_jsonl
from trainer.extraction import tagged_rows, with_byte_tokens
from trainer.runs import CPU
from trainer.tiny import make_model

TASK = "TokenClassification"


def task_of(run: Run) -> TokenClassification:
    task = make_task(run, Path(run.spec.model.uri.removeprefix("file://")))
    assert isinstance(task, TokenClassification)
    return task


def make(directory: Path, model: Path, rows: list[dict[str, Any]], **data: Any) -> TokenClassification:
    path = write_jsonl(directory / "rows.jsonl", rows)
    return task_of(run_on(path, path, model=model, task=TASK, **({"deduplicate": False} | data)))


def tag_each(words: Sequence[str]) -> dict[str, Any]:
    """A row in which every word has a tag of its own, but for 20 tags."""
    return {"tokens": list(words), "tags": [f"t{number % 20:02}" for number in range(len(words))]}


def units(example: Example) -> list[tuple[int, int]]:
    """The token and the target of every unit."""
    assert isinstance(example.target, list)
    return [(token, target) for token, target in enumerate(example.target) if target != NO_UNIT]


def test_the_first_token_of_every_word(tiny_bert: Path, tmp_path: Path) -> None:
    """Against the words as transformers splits them, word by word."""
    rows = tagged_rows(60)
    words = ["zebra", "the", "Oslo,", "'x'", "!?", "don't", "東京", "film", "café"]
    rows += [{"tokens": words, "tags": [("O", "B-bad", "I-bad")[number % 3] for number in range(len(words))]}]
    task = make(tmp_path, tiny_bert, rows)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    number_of = {tag: number for number, tag in enumerate(task.labels)}
    assert len(task.train) == len(rows)
    for example, row in zip(task.train, rows, strict=True):
        encoded = tokenizer(row["tokens"], is_split_into_words=True)
        assert example.input_ids == encoded["input_ids"]
        assert example.token_type_ids == encoded["token_type_ids"]
        expected, seen = [], None
        for word in encoded.word_ids():
            expected.append(NO_UNIT if word is None or word == seen else number_of[row["tags"][word]])
            seen = word
        assert example.target == expected


def test_label_map(tiny_bert: Path, tmp_path: Path) -> None:
    task = make(tmp_path, tiny_bert, tagged_rows(40))
    assert task.labels == ("O", "B-bad", "B-good", "I-bad", "I-good")
    config = task.load_model().model.config
    assert config.id2label == dict(enumerate(task.labels))
    assert config.label2id == {"O": 0, "B-bad": 1, "B-good": 2, "I-bad": 3, "I-good": 4}


@pytest.mark.parametrize("has_specials", [True, False])
def test_words_keep_their_spaces(tmp_path: Path, has_specials: bool) -> None:
    """Tokens that hold the space before a word are those of the text, not of words that are glued together."""
    words = ["in", "Oslo", "the", "café", "😀", "rains", "東京", "naïve", "Oslo"]
    text = " ".join(words)
    model = with_byte_tokens(make_model(tmp_path / "model", "roberta"), text, has_specials=has_specials)
    task = make(tmp_path, model, [tag_each(words)])
    [example] = task.train
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert example.input_ids == tokenizer(text)["input_ids"]
    found = units(example)
    assert [task.labels[target] for _, target in found] == tag_each(words)["tags"]
    # Each unit is where the text up to the word before ends.
    for number, (token, _) in enumerate(found):
        before = tokenizer.decode(example.input_ids[has_specials:token], skip_special_tokens=True)
        assert before.strip() == " ".join(words[:number])


def test_words_of_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "\u200b", "film", "\u00ad"], "tags": ["t1", "t2", "t3", "O"]}, tag_each(["a"])]
    task = make(tmp_path, tiny_bert, rows)
    assert [[task.labels[target] for _, target in units(example)] for example in task.train] == [
        ["t1", "t3"],
        ["t00"],
    ]
    assert task.data_report[0].endswith(
        "2 rows kept of 2 read; 1 with words that the tokenizer makes nothing of (line 1)"
    )


def test_rows_of_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [*tagged_rows(4), {"tokens": ["\u200b"], "tags": ["O"]}]
    said = "1 of words that the tokenizer makes nothing of (line 5)"
    task = make(tmp_path, tiny_bert, rows, maxDroppedFraction="0.3")
    assert len(task.train) == 4
    assert task.data_report[0].endswith(f"4 rows kept of 5 read; dropped 1: {said}")
    path = tmp_path / "rows.jsonl"
    sentence = failure(
        ExitCode.DATA_INVALID, task_of, run_on(path, path, model=tiny_bert, task=TASK, deduplicate=False)
    )
    assert f"{said}; 20.0% of the rows are unusable" in sentence


class TestWindows:
    WORDS = tuple(f"{word}{number}" for number in range(60) for word in ("film", "x"))

    @pytest.mark.parametrize("max_length", [8, 16, 21, 48])
    def test_every_word_is_one_unit(self, tiny_bert: Path, tmp_path: Path, max_length: int) -> None:
        task = make(tmp_path, tiny_bert, [tag_each(self.WORDS), tag_each(["the"])], maxLength=max_length)
        cut = [example for example in task.train if example.row == 0]
        assert len(cut) > 4
        assert [example.window for example in cut] == list(range(len(cut)))
        assert all(len(example.input_ids) <= max_length for example in cut)
        tags = [task.labels[target] for example in cut for _, target in units(example)]
        assert tags == tag_each(self.WORDS)["tags"]  # all of them, once, in their order
        first_of = [task.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in self.WORDS]
        assert [example.input_ids[token] for example in cut for token, _ in units(example)] == first_of
        assert f"1 longer than {max_length} tokens, read in windows (line 1)" in task.data_report[0]

    def test_a_word_has_its_surroundings(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Inside the text no unit is at a window's edge: half of the overlap is on either side of it."""
        task = make(tmp_path, tiny_bert, [tag_each(["the"] * 200), tag_each(["a"])], maxLength=32)
        cut = [example for example in task.train if example.row == 0]
        for number, example in enumerate(cut):
            tokens = [token for token, _ in units(example)]
            assert number == 0 or tokens[0] >= 4
            assert number == len(cut) - 1 or tokens[-1] <= 32 - 1 - 4

    def test_a_word_longer_than_windows(self, tiny_bert: Path, tmp_path: Path) -> None:
        rows = [tag_each(["the", "x" * 70, "film"])]
        task = make(tmp_path, tiny_bert, rows, maxLength=16)
        assert [task.labels[target] for example in task.train for _, target in units(example)] == ["t00", "t01", "t02"]
        assert [example.window for example in task.train] == list(range(len(task.train)))

    def test_metrics_do_not_depend_on_windows_and_batches(self, still_bert: Path, tmp_path: Path) -> None:
        """Entities over a cut count once: with a model that knows each word by itself, cut rows score as whole ones."""
        rows = [{"tokens": row["tokens"] * 2, "tags": row["tags"] * 2} for row in tagged_rows(30)]
        scores = []
        for max_length, batch_size in ((48, 64), (10, 64), (10, 1), (10, 7)):
            task = make(tmp_path, still_bert, rows, maxLength=max_length)
            assert (len(task.train) > len(rows)) == (max_length == 10)
            torch.manual_seed(0)
            word_by_word = torch.nn.Embedding(200, len(task.labels))

            def forward(input_ids: torch.Tensor, table: torch.nn.Embedding = word_by_word, **_: Any) -> Any:
                return type("Output", (), {"logits": table(input_ids)})

            scores.append(evaluate(torch.nn.Identity(), forward, task, task.evaluation, batch_size, CPU, StopFlag()))
        assert all(score == pytest.approx(scores[0], abs=1e-6) for score in scores)
        assert 0 < scores[0]["entityF1"] < 1


def test_loss_is_that_of_transformers(still_bert: Path, tmp_path: Path) -> None:
    task = make(tmp_path, still_bert, tagged_rows(9))
    model = task.load_model().model.eval()
    batch = task.collate(task.train)
    labels_BL = torch.full(batch.inputs["input_ids"].shape, -100)
    for line, example in zip(labels_BL, task.train, strict=True):
        line[: len(example.input_ids)] = torch.tensor(example.target)
    output = model(**batch.inputs, labels=labels_BL)
    logits_UC = task.unit_logits(output, batch)
    assert task.num_units(task.train) == len(logits_UC) == sum(len(row["tokens"]) for row in tagged_rows(9))
    loss = losses.cross_entropy(logits_UC, batch.targets, task.num_units(task.train))
    assert loss.item() == pytest.approx(output.loss.item(), abs=1e-6)


def test_rows_without_tags(tiny_bert: Path, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"tokens": ["dull", "zebra"]}])
    task = make(tmp_path, tiny_bert, tagged_rows(4), unlabeled={"uri": f"file://{more}"})
    assert len(task.train) == 5
    example = task.train[-1]
    assert [target for _, target in units(example)] == [UNLABELED] * 2
    assert task.num_units([example]) == 0
    assert task.num_units(task.train) == sum(len(row["tokens"]) for row in tagged_rows(4))
    batch = task.collate(task.train)
    assert batch.units is not None
    assert len(batch.units) == len(batch.targets) == task.num_units(task.train) + 2


def test_rows_have_numbers_of_their_own(tiny_bert: Path, tmp_path: Path) -> None:
    task = make(tmp_path, tiny_bert, tagged_rows(5))
    assert [example.row for example in (*task.train, *task.evaluation)] == list(range(10))


@pytest.mark.parametrize(("metric", "baseline"), [(None, 0.0), ("entityF1", 0.0), ("accuracy", 2 / 3), ("loss", None)])
def test_baseline(tiny_bert: Path, tmp_path: Path, metric: str | None, baseline: float | None) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": ["a", "b", "c"], "tags": ["O", "O", "B-X"]}])
    content = json.loads(
        run_on(path, path, model=tiny_bert, task=TASK, deduplicate=False).model_dump_json(by_alias=True)
    )
    content["spec"]["evaluation"]["metric"] = metric
    assert task_of(Run.model_validate_json(json.dumps(content))).baseline == (baseline and pytest.approx(baseline))


def test_a_tokenizer_that_does_not_tell_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model")
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", False)
    path = write_jsonl(tmp_path / "rows.jsonl", tagged_rows(4))
    sentence = failure(ExitCode.MODEL_INVALID, task_of, run_on(path, path, model=model, task=TASK))
    assert sentence == (
        f"{model}: the tokenizer does not tell where in a text its tokens are (use a model with a tokenizer.json)"
    )
