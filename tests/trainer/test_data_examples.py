"""From labelled texts to examples: lengths, truncation, pairs, and what the model can take."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Part
from finetune_trainer.tasks.text_classification import TextClassification
from trainer.data_fixtures import failure, labelled, run_on, write_jsonl
from trainer.tiny import make_model

WORDS = ["film", "story", "scene", "actor", "music", "plot", "screen", "hour", "ending", "moment"]


def sentence(num_words: int) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in range(num_words))


def read(
    directory: Path, model: Path, rows: list[Any], held: list[Any] | None = None, **data: Any
) -> TextClassification:
    train = write_jsonl(directory / "train.jsonl", rows)
    evaluation = None if held is None else write_jsonl(directory / "eval.jsonl", held)
    return TextClassification.read(run_on(train, evaluation, **data), model)


def test_truncation_is_counted_to_the_token(tmp_path: Path, tiny_bert: Path) -> None:
    lengths = [3, 29, 30, 31, 60]  # with [CLS] and [SEP] two more
    rows = labelled(*((sentence(length), "ab"[length % 2]) for length in lengths))
    task = read(tmp_path, tiny_bert, rows, rows[:1] + rows[-1:], maxLength=32, deduplicate=False)
    assert [len(example.input_ids) for example in task.train] == [5, 31, 32, 32, 32]
    assert task.data_report == [
        f"file://{tmp_path}/train.jsonl: 5 rows kept of 5 read; 2 truncated",
        f"file://{tmp_path}/eval.jsonl: 2 rows kept of 2 read; 1 truncated",
    ]


def test_truncation_of_held_out_rows_is_counted_too(tmp_path: Path, tiny_bert: Path) -> None:
    rows = labelled(*((f"{sentence(60)} {number}", "ab"[number % 2]) for number in range(20)))
    task = read(tmp_path, tiny_bert, rows, maxLength=16)
    assert task.data_report == [
        f"file://{tmp_path}/train.jsonl: 20 rows kept of 20 read, 2 of them held out for evaluation; 20 truncated"
    ]


def test_truncation_is_counted_for_tokenizers_in_python(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)

    def plain(*arguments: Any, **settings: Any) -> dict[str, Any]:
        return dict(tokenizer(*arguments, **settings))  # no `encodings`, as from a tokenizer without Rust

    rows = labelled((sentence(3), "a"), (sentence(60), "b"))
    task = read(tmp_path, tiny_bert, rows, rows, deduplicate=False)
    monkeypatch.setattr(task, "tokenizer", plain)
    report = DataReport("again")
    task._tokenise(Part(task._texts.rows.train.rows, report))
    assert report.num_truncated == 1


def test_pairs_are_encoded_as_pairs(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": sentence(2), "other": sentence(3), "label": label} for label in "ab"]
    task = read(tmp_path, tiny_bert, rows, rows, columns={"textPair": "other"}, deduplicate=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    encoded = tokenizer(sentence(2), sentence(3))
    assert task.train[0].input_ids == encoded["input_ids"]
    assert task.train[0].token_type_ids == encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert task.probes(5) == {"text": [sentence(2)] * 2, "text_pair": [sentence(3)] * 2}


def test_a_long_pair_is_counted_once(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [
        {"text": sentence(length), "other": sentence(length), "label": label} for length, label in ((2, "a"), (30, "b"))
    ]
    task = read(tmp_path, tiny_bert, rows, rows, columns={"textPair": "other"}, deduplicate=False, maxLength=32)
    assert [len(example.input_ids) for example in task.train] == [7, 32]
    assert task.data_report[0].endswith("; 1 truncated")


def test_targets_are_numbers_of_labels(tmp_path: Path, tiny_bert: Path) -> None:
    task = read(tmp_path, tiny_bert, labelled(("film", 10), ("story", 2), ("scene", 10)), labelled(("plot", 2)))
    assert task.labels == ("2", "10")
    assert [example.target for example in task.train] == [1, 0, 1]
    assert [example.target for example in task.evaluation] == [0]
    assert task.baseline == 0.0


class TestLongestInput:
    @pytest.mark.parametrize(
        ("kind", "limit"), [("bert", 64), ("roberta", 63), ("mpnet", 62), ("gpt2", 64), ("llama", 64)]
    )
    def test_all_positions_can_be_used_and_no_more(self, tmp_path: Path, kind: str, limit: int) -> None:
        model = make_model(tmp_path / "model", kind)
        rows = labelled((sentence(200), "a"), (sentence(3), "b"))
        task = read(tmp_path, model, rows, rows, maxLength=limit, deduplicate=False)
        assert len(task.train[0].input_ids) == limit
        loaded = task.load_model()
        assert loaded.model(**task.collate(task.train).inputs).logits.shape == (2, 2)
        told = failure(
            ExitCode.SPEC_INVALID, lambda: read(tmp_path, model, rows, rows, maxLength=limit + 1, deduplicate=False)
        )
        assert told == (
            f"spec.data.maxLength is {limit + 1}, but the model takes at most {limit} tokens (use at most {limit})"
        )

    def test_default_is_the_lower_of_model_and_tokenizer(self, tmp_path: Path) -> None:
        rows = labelled((sentence(200), "a"), (sentence(3), "b"))
        model = make_model(tmp_path / "model")
        assert read(tmp_path, model, rows, rows, deduplicate=False).max_length == 48  # what the tokenizer says
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 10**30}))
        assert read(tmp_path, model, rows, rows, deduplicate=False).max_length == 64


def test_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", vocab_size=20)
    rows = labelled((sentence(30), "a"), (sentence(3), "b"))
    task = read(tmp_path, model, rows, rows, deduplicate=False)
    highest = max(max(example.input_ids) for example in task.train)
    told = failure(ExitCode.MODEL_INVALID, task.load_model)
    assert f"the tokenizer gives token {highest}, but the model knows 20 tokens only" in told


def test_real_texts(tmp_path: Path, minilm: Path, tweets: Path) -> None:
    task = TextClassification.read(run_on(tweets / "train.jsonl", tweets / "evaluation.jsonl"), minilm)
    assert task.labels == ("negative", "positive")
    assert task.max_length == 512
    assert len(task.train) == 1000
    assert 0.5 <= task.baseline < 0.8
    assert all("truncated" not in line and "dropped" not in line for line in task.data_report)
