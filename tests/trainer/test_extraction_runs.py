"""Whole runs that learn to extract: one gradient however batches are split, exact resumption, exports that are used."""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer, pipeline

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from finetune_trainer import losses
from finetune_trainer.loop import TrainingLoop
from trainer import processes
from trainer.extraction import FOLLOWING, WORDS_OF, asking_run, question_rows, tagged_rows, tagging_run
from trainer.processes import run_trainer
from trainer.runs import complete, end_state, make_loop, notes, output, without_dropout
from trainer.tiny import FULL, HOULSBY, KINDS, LORA, make_model

MakeRun = Callable[..., Run]
TASKS: dict[str, MakeRun] = {"tags": tagging_run, "answers": asking_run}
STRATEGIES = {"full": FULL, "houlsby": HOULSBY, "lora": LORA}
PRECISE = 1e-6
ROOT = Path(__file__).resolve().parents[2]
# Rates and lengths with which each learns its rule.
LEARNING = {
    ("tags", "full"): {"epochs": 12, "learningRate": "2e-3"},
    ("tags", "houlsby"): {"epochs": 12, "learningRate": "1e-2"},
    ("answers", "full"): {"epochs": 12, "learningRate": "2e-3"},
}


@pytest.fixture(params=TASKS)
def make(request: pytest.FixtureRequest) -> MakeRun:
    return TASKS[request.param]


def one_step(loop: TrainingLoop) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the next batch; the update itself is left out."""
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        trained = loop.tuning.trained.items()
        gradients.update({n: e.parameter.grad.clone() for n, e in trained if e.parameter.grad is not None})

    loop.optimizer.step = keep  # type: ignore[method-assign]
    loop.model.train()
    return loop.train_step(), gradients


def pad_more(task: Any, columns: int) -> None:
    """Make every batch of a task wider than it needs to be."""
    collate = task.collate

    def wider(examples: Any) -> Any:
        batch = collate(examples)
        width = batch.inputs["input_ids"].shape[1]
        inputs = {name: nn.functional.pad(tensor, (0, columns)) for name, tensor in batch.inputs.items()}
        if batch.possible is not None:
            return dataclasses.replace(batch, inputs=inputs, possible=nn.functional.pad(batch.possible, (0, columns)))
        return dataclasses.replace(batch, inputs=inputs, units=batch.units + batch.units // width * columns)

    task.collate = wider


def assert_same(first: tuple[float, dict[str, Tensor]], second: tuple[float, dict[str, Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], abs=PRECISE)
    assert first[1].keys() == second[1].keys()
    assert max(gradient.abs().max().item() for gradient in first[1].values()) > 1e-2
    for name, gradient in first[1].items():
        assert torch.allclose(gradient, second[1][name], rtol=0, atol=PRECISE), name


@pytest.mark.parametrize("name", STRATEGIES)
def test_split_and_padding_change_neither_loss_nor_gradient(
    still_bert: Path, tmp_path: Path, make: MakeRun, name: str
) -> None:
    """Examples have unequal numbers of words, and some are windows of one row: a mean of means would differ."""

    def loop(micro: int) -> TrainingLoop:
        training = {"batchSize": 12, "microBatchSize": micro, "maxGradNorm": "1e9"}
        data = {"maxLength": 16}
        place = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return without_dropout(make_loop(make(place, still_bert, STRATEGIES[name], training=training, data=data)))

    first = loop(12)
    assert len(first.task.train) > 120
    whole = one_step(first)
    assert_same(whole, one_step(loop(1)))
    assert_same(whole, one_step(loop(5)))
    padded = loop(12)
    pad_more(padded.task, 7)
    assert_same(whole, one_step(padded))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(tmp_path: Path, make: MakeRun, kind: str) -> None:
    """Encoders and decoders: the head is new, each unit has its logits, and the gradient reaches head and body."""
    loop = make_loop(make(tmp_path / "run", make_model(tmp_path / "model", kind), FULL))
    task, model = loop.task, loop.model.train()
    assert {name for name, entry in loop.tuning.trained.items() if entry.is_head}
    batch = task.collate(task.train[:8])
    logits_UC = task.unit_logits(model(**batch.inputs), batch)
    assert len(logits_UC) == len(batch.targets) == task.num_units(task.train[:8])
    losses.cross_entropy(logits_UC, batch.targets, len(logits_UC)).backward()
    for is_head in (True, False):
        entries = [entry for entry in loop.tuning.trained.values() if entry.is_head == is_head]
        assert max(entry.parameter.grad.abs().max() for entry in entries if entry.parameter.grad is not None) > 0


def learnt(directory: Path, model: Path, task: str, name: str) -> tuple[Run, Termination]:
    run = TASKS[task](
        directory, model, STRATEGIES[name], num_train=400, training=LEARNING[task, name], evaluation={"everySteps": 200}
    )
    return run, complete(run)


@pytest.mark.slow
def test_tags_are_learnt_and_used(tiny_bert: Path, tmp_path: Path) -> None:
    """The export, reloaded and compared in a fresh process, works in transformers' own pipeline."""
    run, termination = learnt(tmp_path, tiny_bert, "tags", "full")
    result = termination.result
    assert result is not None
    assert result.metric == "entityF1"
    assert result.baseline == 0.0
    assert result.before["entityF1"] < 0.3
    assert result.after["entityF1"] > 0.85
    assert result.after["accuracy"] > 0.95
    names = pipeline("token-classification", str(output(run)), aggregation_strategy="first")
    found = names("the dull house was a bright light")
    assert [(one["entity_group"], one["word"]) for one in found] == [("bad", "dull"), ("good", "bright")]

    # And as the documentation tells to read the tags, also where a word is of several tokens.
    code = (ROOT / "docs" / "extraction.md").read_text().partition("```python\n")[2].partition("```")[0]
    text = "the dull, zebra0 was bright."
    known: dict[str, Any] = {"tokenizer": names.tokenizer, "model": names.model, "text": text}
    exec(code, known)  # noqa: S102
    assert known["tags"] == {0: "O", 1: "B-bad", 2: "O", 3: "O", 4: "B-good"}


@pytest.mark.slow
def test_tags_are_learnt_by_an_adapter(tiny_bert: Path, tmp_path: Path) -> None:
    run, termination = learnt(tmp_path, tiny_bert, "tags", "houlsby")
    assert termination.result is not None
    assert termination.result.before["entityF1"] < 0.3
    assert termination.result.after["entityF1"] > 0.55
    model = transformers.AutoModelForTokenClassification.from_pretrained(output(run), trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(output(run))
    rows = tagged_rows(20, seed=9)
    right = total = 0
    for row in rows:
        inputs = tokenizer(" ".join(row["tokens"]), return_tensors="pt")
        with torch.no_grad():
            tags = model(**inputs).logits[0].argmax(-1).tolist()[1:-1]  # every word is one token
        right += sum(model.config.id2label[tag] == expected for tag, expected in zip(tags, row["tags"], strict=True))
        total += len(tags)
    assert right / total > 0.9


@pytest.mark.slow
def test_answers_are_learnt_and_used(tiny_bert: Path, tmp_path: Path) -> None:
    run, termination = learnt(tmp_path, tiny_bert, "answers", "full")
    result = termination.result
    assert result is not None
    assert result.metric == "f1"
    assert result.baseline == 0.25
    assert result.after["f1"] > 0.9
    assert result.after["exactMatch"] > 0.9
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(output(run))
    tokenizer = AutoTokenizer.from_pretrained(output(run))
    hits = 0
    rows = question_rows(40, seed=9)
    for row in rows:
        encoded = tokenizer(row["question"], row["context"], return_offsets_mapping=True, return_tensors="pt")
        places = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            found = model(**encoded)
        start, end = found.start_logits[0].argmax().item(), found.end_logits[0].argmax().item()
        answer = row["context"][places[start][0] : places[end][1]]  # of [CLS], nothing
        hits += [answer] == (row["answers"]["text"] or [""])
    assert hits / len(rows) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), [("tags", "lora"), ("answers", "houlsby"), ("answers", "lora")])
def test_other_exports_are_the_same(tiny_bert: Path, tmp_path: Path, task: str, name: str) -> None:
    """`complete` is the word of a fresh process that has loaded the export and given the same logits."""
    run = TASKS[task](tmp_path, tiny_bert, STRATEGIES[name], training={"maxSteps": 3})
    complete(run)
    assert (output(run) / "README.md").exists()


def test_the_merged_answers_are_those_that_were_trained(tiny_bert: Path, tmp_path: Path) -> None:
    """A plain model tells question from context by the token types; so must the one that is trained."""
    lora = {**STRATEGIES["lora"]["adapter"], "merge": True}
    run = TASKS["answers"](tmp_path, tiny_bert, {"adapter": lora}, training={"maxSteps": 3})
    complete(run)  # the export's own comparison
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(output(run))
    inputs = AutoTokenizer.from_pretrained(output(run))("a question", "a context", return_tensors="pt")
    without = {**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
    assert not torch.equal(model(**inputs).start_logits, model(**without).start_logits)


@pytest.mark.parametrize(("task", "name"), [("tags", "houlsby"), ("answers", "full")])
def test_a_killed_run_ends_with_the_same_bits(tiny_bert: Path, tmp_path: Path, task: str, name: str) -> None:
    """Dropout, windows, micro-batches and early stopping; killed in the middle."""

    def run_in(place: str) -> Run:
        return TASKS[task](
            tmp_path / place,
            tiny_bert,
            STRATEGIES[name],
            num_train=40,
            data={"maxLength": 16},
            training={"epochs": 3, "batchSize": 8, "microBatchSize": 5, "learningRate": "5e-3"},
            evaluation={"everySteps": 3, "earlyStopping": {"patience": 2}},
            checkpoint={"everySteps": 4},
        )

    undisturbed, killed = run_in("undisturbed"), run_in("killed")
    answer = tmp_path / "events"
    assert run_trainer(undisturbed, functools.partial(processes.count_events, answer)) == ExitCode.COMPLETE
    kill = functools.partial(processes.kill_at_event, int(answer.read_text()) // 2)
    assert run_trainer(killed, kill) == -signal.SIGKILL
    assert run_trainer(killed) == ExitCode.COMPLETE
    assert any("resumed from the checkpoint" in note for note in notes(killed))
    assert end_state(killed) == end_state(undisturbed)


def test_the_rule_is_in_the_rows() -> None:
    """What the tests above learn is really there: tags follow from the words, answers from the question."""
    kind_of = {word: kind for kind, words in WORDS_OF.items() for word in words}
    for row in tagged_rows(50):
        previous = "O"
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            expected = f"B-{kind_of[word]}" if word in kind_of else f"I-{previous[2:]}" if word in FOLLOWING else "O"
            assert tag == expected
            previous = tag
    for row in question_rows(50):
        wanted = [word for word in row["context"].split() if kind_of.get(word) == row["question"]]
        assert row["answers"]["text"] == wanted
