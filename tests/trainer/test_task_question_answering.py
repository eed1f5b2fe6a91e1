"""Questions as examples: windows whose targets are the answer's tokens, and transformers' own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from transformers.loss.loss_utils import ForQuestionAnsweringLoss

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import losses
from finetune_trainer.answer_metrics import text_between
from finetune_trainer.batching import UNLABELED, Example
from finetune_trainer.evaluation import evaluate
from finetune_trainer.stop import StopFlag
from finetune_trainer.tasks import make_task
from finetune_trainer.tasks.question_answering import QuestionAnswering
from trainer.data_fixtures import failure, run_on, write_jsonl
from trainer.extraction import question_rows, with_byte_tokens
from trainer.runs import CPU
from trainer.tiny import NEUTRAL, make_model

TASK = "QuestionAnswering"
NOT_KNOWN = (UNLABELED, UNLABELED)


def row(question: str, context: str, answer: str = "") -> dict[str, Any]:
    text = [answer] if answer else []
    return {
        "question": question,
        "context": context,
        "answers": {"text": text, "answer_start": list(map(context.index, text))},
    }


def task_of(run: Run) -> QuestionAnswering:
    task = make_task(run, Path(run.spec.model.uri.removeprefix("file://")))
    assert isinstance(task, QuestionAnswering)
    return task


def make(directory: Path, model: Path, rows: list[dict[str, Any]], **data: Any) -> QuestionAnswering:
    path = write_jsonl(directory / "rows.jsonl", rows)
    return task_of(run_on(path, path, model=model, task=TASK, **({"deduplicate": False} | data)))


def span(example: Example) -> tuple[int, int]:
    assert isinstance(example.target, tuple)
    return example.target


def test_usual_rows(tiny_bert: Path, tmp_path: Path) -> None:
    task = make(tmp_path, tiny_bert, [row("bad", "the film was dull and weak", "dull"), row("good", "the film")])
    first, second = task.train
    assert task.tokenizer.convert_ids_to_tokens(first.input_ids) == (
        ["[CLS]", "bad", "[SEP]", "the", "film", "was", "dull", "and", "weak", "[SEP]"]
    )
    assert first.token_type_ids == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert span(first) == (6, 6)
    assert span(second) == (0, 0)
    batch = task.collate(task.train)
    assert batch.targets.tolist() == [6, 6, 0, 0]
    assert batch.possible is not None
    assert batch.possible.int().tolist() == [[1, 0, 0, 1, 1, 1, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0, 0, 0, 0, 0]]
    assert task.labels == ()


TEXTS = [
    ("Oslo", "in Oslo it rains"),
    ("Café Zoë", "the Café Zoë, too"),
    ("\U0001f600 fun", "so \U0001f680 \U0001f600 fun"),
    ("東京", "in 東京 it rains"),
    ("naïve", "a nai\u0308ve or naïve film"),
    ("1990", "in 1990s"),
    ("rains", "rains"),
    ("\U0001f1f3\U0001f1f4", "the \U0001f1f3\U0001f1f4 house"),
    ("e\u0301", "cafe\u0301"),
]


@pytest.mark.parametrize("kind", ["wordpiece", "bytes with specials", "bytes alone"])
def test_answers_are_found_again_in_the_text(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    """From characters to tokens and back: the tokens' text holds the answer, and no more than whole tokens need."""
    model = tiny_bert
    if kind != "wordpiece":
        text = " ".join(context for _, context in TEXTS)
        made = make_model(tmp_path / "model", "roberta")
        model = with_byte_tokens(made, text, has_specials=kind == "bytes with specials")
    task = make(tmp_path, model, [row("the film?", context, answer) for answer, context in TEXTS])
    assert len(task.evaluation) == len(TEXTS)
    for example, (answer, context) in zip(task.evaluation, TEXTS, strict=True):
        window = task._windows[example.row, 0]
        first, last = span(example)
        assert window.first <= first <= last <= window.last
        begin, end = window.places[first - window.first][0], window.places[last - window.first][1]
        # No more than whole tokens need: 1990s may be one, and so may an accent with its letter.
        assert text_between(context, begin, end) in (answer, "1990s", "cafe\u0301")
        assert begin <= context.index(answer)
        # Without its first or its last token the answer would not be whole.
        if first < last:
            inner = window.places[first + 1 - window.first][0], window.places[last - 1 - window.first][1]
            assert answer not in (context[inner[0] : end], context[begin : inner[1]])


@pytest.mark.parametrize("kind", ["wordpiece", "bytes with specials", "bytes alone"])
def test_a_model_that_is_right_scores_all(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    """Decoding is the opposite of labelling, in windows too."""
    texts = [(answer, context) for answer, context in TEXTS if answer not in ("1990", "e\u0301")]
    model = tiny_bert
    if kind != "wordpiece":
        made = make_model(tmp_path / "model", "roberta")
        model = with_byte_tokens(made, " ".join(context for _, context in texts), has_specials="with" in kind)
    rows = [
        row("the?", f"{'the film ' * n}{context}{' it is' * n}", answer) for n, (answer, context) in enumerate(texts)
    ]
    rows += [row("a?", "the film"), row("a?", "the film " * 20)]
    task = make(tmp_path, model, rows, maxLength=32)
    assert len(task.evaluation) > len(rows)
    by_ids = {tuple(example.input_ids): span(example) for example in task.evaluation}

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(2, *input_ids.shape)
        for number, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            first, last = by_ids[tuple(ids[mask.bool()].tolist())]
            logits[0, number, first] = logits[1, number, last] = 9.0
        return type("Output", (), {"start_logits": logits[0], "end_logits": logits[1]})

    for batch_size in (1, 64):
        found = evaluate(torch.nn.Identity(), forward, task, task.evaluation, batch_size, CPU, StopFlag())
        assert found["exactMatch"] == found["f1"] == 1.0
    assert task.baseline == pytest.approx(2 / len(rows))


class TestWindows:
    def test_nothing_is_lost(self, tiny_bert: Path, tmp_path: Path) -> None:
        words = [NEUTRAL[number % 27] for number in range(100)]
        words[50] = "dull"
        task = make(tmp_path, tiny_bert, [row("which bad", " ".join(words), "dull")], maxLength=32)
        asked = task.tokenizer.convert_tokens_to_ids(["[CLS]", "which", "bad", "[SEP]"])[2:]
        dull = task.tokenizer.convert_tokens_to_ids("dull")
        holding = 0
        seen: set[tuple[int, int]] = set()
        for number, example in enumerate(task.evaluation):
            assert example.window == number
            assert len(example.input_ids) <= 32
            assert asked[0] in example.input_ids  # the question is before every window
            window = task._windows[example.row, number]
            seen.update(window.places)
            if dull in example.input_ids:
                place = example.input_ids.index(dull)
                assert span(example) == (place, place)
                holding += 1
            else:
                assert span(example) == (0, 0)
        assert holding >= 1
        whole = AutoTokenizer.from_pretrained(tiny_bert)(" ".join(words), return_offsets_mapping=True)
        assert seen == set(whole["offset_mapping"][1:-1])
        assert "1 longer than 32 tokens, read in windows (line 1)" in task.data_report[0]

    def test_an_answer_at_a_cut_is_whole_in_the_next_window(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Wherever an answer of less than the overlap stands, a window has all of it."""
        for place in range(60):
            words = ["the"] * 60
            words[place : place + 5] = ["dull", "film", "and", "weak", "story"][: 60 - place]
            answer = " ".join(words[place : place + 5])
            task = make(tmp_path, tiny_bert, [row("bad", " ".join(words), answer)], maxLength=24)
            holding = [span(example) for example in task.train if span(example) != (0, 0)]
            assert holding
            assert {last - first for first, last in holding} == {answer.count(" ")}

    def test_an_answer_that_no_window_holds(self, tiny_bert: Path, tmp_path: Path) -> None:
        answer = " ".join(["film"] * 40)
        rows = [row("bad", f"the {answer} is", answer), *question_rows(30)]
        path, held = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows)
        task = task_of(run_on(path, held, model=tiny_bert, task=TASK, maxLength=24, deduplicate=False))
        assert len({example.row for example in task.train}) == 30
        assert "dropped 1: 1 with an answer that no window holds (line 1)" in task.data_report[0]
        # It is judged all the same, as not found, but its loss is not known.
        assert len({example.row for example in task.evaluation}) == 31
        first = [example for example in task.evaluation if example.row == 30]
        assert len(first) > 1
        assert all(span(example) == NOT_KNOWN for example in first)
        assert "31 rows kept of 31 read; 1 with an answer that no window holds (line 1)" in task.data_report[1]

    def test_a_question_that_leaves_no_room(self, tiny_bert: Path, tmp_path: Path) -> None:
        rows = [row("film " * 12, "the film is dull", "dull"), row("film " * 13, "the film is dull", "dull")]
        task = make(tmp_path, tiny_bert, rows, maxLength=31, maxDroppedFraction="0.5")
        assert len(task.train) == 1
        assert "dropped 1: 1 with a question of more than 12 tokens (line 2)" in task.data_report[0]
        path = tmp_path / "rows.jsonl"
        run = run_on(path, path, model=tiny_bert, task=TASK, maxLength=16, deduplicate=False, maxDroppedFraction="1")
        assert "2 with a question of more than 5 tokens" in failure(ExitCode.DATA_INVALID, task_of, run)


def test_an_answer_that_the_tokenizer_makes_nothing_of(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [row("bad", "the \u200b film", "\u200b"), *question_rows(10)]
    task = make(tmp_path, tiny_bert, rows, maxDroppedFraction="0.1")
    assert len(task.train) == 10


def test_loss_is_that_of_transformers(still_bert: Path, tmp_path: Path) -> None:
    rows = question_rows(9)
    task = make(tmp_path, still_bert, rows)
    model = task.load_model().model.eval()
    batch = task.collate(task.train)
    output = model(**batch.inputs)
    logits_UC = task.unit_logits(output, batch)
    loss = losses.cross_entropy(logits_UC, batch.targets, task.num_units(task.train))
    # Their own function, told that neither the question nor padding can be an answer.
    starts, ends = (torch.tensor([span(example)[side] for example in task.train]) for side in (0, 1))
    assert batch.possible is not None
    masked = [logits.masked_fill(~batch.possible, -1e30) for logits in (output.start_logits, output.end_logits)]
    theirs = ForQuestionAnsweringLoss(*masked, starts, ends)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    # And to the letter where every token may be one.
    batch.possible.fill_(True)
    everywhere = losses.cross_entropy(task.unit_logits(output, batch), batch.targets, task.num_units(task.train))
    whole = model(**batch.inputs, start_positions=starts, end_positions=ends).loss
    assert everywhere.item() == pytest.approx(whole.item(), abs=1e-6)
    assert loss.item() < everywhere.item()


def test_unknown_targets_count_for_nothing(still_bert: Path, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"question": "bad", "context": "the film is dull"}])
    task = make(tmp_path, still_bert, question_rows(4), unlabeled={"uri": f"file://{more}"})
    assert span(task.train[-1]) == NOT_KNOWN
    assert task.num_units(task.train) == 8
    batch, known = task.collate(task.train), task.collate(task.train[:-1])
    model = task.load_model().model.eval()
    logits_UC = task.unit_logits(model(**batch.inputs), batch)
    assert len(logits_UC) == 10
    loss = losses.cross_entropy(logits_UC, batch.targets, 8)
    expected = losses.cross_entropy(task.unit_logits(model(**known.inputs), known), known.targets, 8)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders_point_at_their_first_token(tmp_path: Path, kind: str) -> None:
    """They have no [CLS]; "no answer" is then the first token, which is a question's."""
    model = with_byte_tokens(
        make_model(tmp_path / "model", kind, vocab_size=400), "the film is dull", has_specials=False
    )
    task = make(tmp_path, model, [row("the film?", "it is dull", "dull"), row("a?", "the film")])
    first, second = task.train
    assert first.token_type_ids is None
    assert task.tokenizer.decode(first.input_ids[span(first)[0] : span(first)[1] + 1]).strip() == "dull"
    assert span(second) == (0, 0)
    batch = task.collate(task.train)
    logits_UC = task.unit_logits(task.load_model().model.eval()(**batch.inputs), batch)
    assert torch.isfinite(losses.cross_entropy(logits_UC, batch.targets, 4))
