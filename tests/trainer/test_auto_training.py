"""Runs with strategy.auto: they end as the run with the chosen strategy does, and a restart keeps the choice."""

from __future__ import annotations

import functools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from finetune_api.v1alpha1.status import ChosenStrategy, Progress, StrategyChoice
from finetune_trainer.auto import choose, read
from finetune_trainer.progress import TERMINATION_LIMIT_BYTES, write_termination
from finetune_trainer.tasks import make_task
from trainer import choosing, processes
from trainer.adapted import load
from trainer.processes import run_trainer
from trainer.ranks import last_word, on_nodes, run_ranks
from trainer.runs import CPU, complete, end_state, events, finish, leftovers, notes, output, output_weights
from trainer.tiny import make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

AUTO: dict[str, Any] = {"auto": {}}
CHEAP: dict[str, Any] = {"auto": {"prefer": "Cost"}}
FULL: dict[str, Any] = {"full": {}}
BOTTLENECK: dict[str, Any] = {"adapter": {"type": "Bottleneck"}}
LORA: dict[str, Any] = {"adapter": {"type": "LoRA"}}


def with_strategy(run: Run, strategy: dict[str, Any], place: Path | None = None) -> Run:
    """The run with another strategy and the rate that is its default, elsewhere if told to."""
    content = run.to_json()
    content["spec"]["strategy"] = strategy
    content["spec"]["training"].pop("learningRate", None)
    if place is not None:
        place.mkdir()
        for rows in Path(run.manifest_dir).glob("*.jsonl"):
            (place / rows.name).write_bytes(rows.read_bytes())
        content |= {"workDir": str(place / "work"), "manifestDir": str(place)}
    return Run.model_validate_json(json.dumps(content))


def classifier(directory: Path, model: Path, strategy: dict[str, Any], **fields: Any) -> Run:
    return with_strategy(make_run(directory, model, FULL, **({"training": {"maxSteps": 4}} | fields)), strategy)


def choice_of(termination: Termination) -> StrategyChoice:
    assert termination.progress is not None
    assert termination.progress.choice is not None
    return termination.progress.choice


def memory_is(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(read, "memory_there", lambda device: size)


@pytest.fixture
def many_from_60_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are enough for full tuning, or the tests would have to train on thousands."""
    monkeypatch.setattr(choose, "FULL_FROM_ROWS", 60)


# ---- the chosen strategy as if it had been given ----


def test_a_classifier_with_few_rows_ends_in_the_very_weights_of_bottleneck_adapters(
    tiny_bert: Path, tmp_path: Path
) -> None:
    run = classifier(tmp_path / "auto", tiny_bert, AUTO)
    given = with_strategy(run, BOTTLENECK, tmp_path / "given")
    termination, expected = complete(run), complete(given)
    choice = choice_of(termination)
    assert choice.strategy == "Bottleneck"
    assert choice.reason.startswith("60 training rows are fewer than 2,500")
    assert end_state(run) == end_state(given)
    assert termination.result is not None
    assert expected.result is not None
    assert termination.result.after == expected.result.after
    assert termination.result.trainable_parameters == expected.result.trainable_parameters
    with torch.no_grad():
        logits = load(given)(**AutoTokenizer.from_pretrained(output(run))("the film", return_tensors="pt")).logits
    assert logits.shape == (1, 2)


@pytest.mark.usefixtures("unchecked_export", "many_from_60_rows")
def test_a_classifier_with_many_rows_ends_in_the_very_weights_of_full_tuning(tiny_bert: Path, tmp_path: Path) -> None:
    run = classifier(tmp_path / "auto", tiny_bert, AUTO)
    given = with_strategy(run, FULL, tmp_path / "given")
    assert choice_of(complete(run)).strategy == "Full"
    complete(given)
    assert end_state(run) == end_state(given)


def test_a_generator_ends_in_the_very_weights_of_lora(tmp_path: Path) -> None:
    model = make_lm(tmp_path / "model")
    run = with_strategy(make_lm_run(tmp_path / "auto", model, FULL, make_chats(24)), AUTO)
    given = with_strategy(run, LORA, tmp_path / "given")
    choice = choice_of(complete(run))
    assert choice.strategy == "LoRA"
    assert "learnt tokens are within" in choice.reason
    complete(given)
    assert end_state(run) == end_state(given)
    assert load(run).generate(torch.tensor([[3, 4]]), max_new_tokens=3).shape == (1, 5)


@pytest.mark.usefixtures("unchecked_export", "many_from_60_rows")
def test_cost_takes_adapters_where_accuracy_takes_full_tuning(tiny_bert: Path, tmp_path: Path) -> None:
    assert choice_of(complete(classifier(tmp_path, tiny_bert, CHEAP))).strategy == "Bottleneck"


@pytest.mark.usefixtures("unchecked_export")
def test_a_family_without_places_for_bottlenecks_gets_lora(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "mpnet")
    assert choice_of(complete(classifier(tmp_path / "run", model, CHEAP))).strategy == "LoRA"


@pytest.mark.usefixtures("unchecked_export")
def test_the_reason_is_in_the_log_the_first_report_and_the_model_card(tiny_bert: Path, tmp_path: Path) -> None:
    run = classifier(tmp_path, tiny_bert, AUTO)
    choice = choice_of(complete(run))
    assert f"strategy.auto chooses Bottleneck: {choice.reason}" in notes(run)
    progress = [event["progress"] for event in events(run) if event["event"] == "progress"]
    assert all(report["choice"]["reason"] == choice.reason for report in progress)
    assert progress[0]["step"] == progress[0]["totalSteps"] == 0  # before anything is trained
    card = (output(run) / "README.md").read_text(encoding="utf-8")
    assert "strategy Bottleneck." in card
    assert f"- Bottleneck was chosen by strategy.auto: {choice.reason}.\n" in card


@pytest.mark.usefixtures("unchecked_export")
def test_the_card_of_a_given_strategy_speaks_of_no_choice(tiny_bert: Path, tmp_path: Path) -> None:
    run = classifier(tmp_path, tiny_bert, BOTTLENECK)
    complete(run)
    assert "strategy.auto" not in (output(run) / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("length", [100, 2048])
def test_the_last_word_keeps_the_choice_when_it_has_to_be_cut(tmp_path: Path, length: int) -> None:
    choice = StrategyChoice(strategy=ChosenStrategy.LORA, reason="r" * 512)
    metrics = {f"{number:0>60}": 0.123456789 for number in range(32)}
    progress = Progress(step=3, total_steps=4, percent=75, evaluation=metrics, choice=choice)
    code = ExitCode.NON_FINITE_LOSS
    word = Termination(exit_code=code, reason=code.reason, message="m" * length, hint="h" * 512, progress=progress)
    write_termination(tmp_path / "word", word)
    text = (tmp_path / "word").read_bytes()
    assert len(text) <= TERMINATION_LIMIT_BYTES
    kept = Termination.model_validate_json(text)
    assert choice_of(kept) == choice
    assert kept.progress is not None
    assert (kept.progress.step, kept.progress.total_steps, kept.progress.percent) == (3, 4, 75)
    assert kept.message == "m" * length


# ---- what does not fit ----


def test_where_nothing_fits_the_run_ends_before_the_weights_are_read(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_is(monkeypatch, 2**16)
    monkeypatch.setattr("finetune_trainer.models.load_model", lambda *_, **__: pytest.fail("read"))
    run = classifier(tmp_path, tiny_bert, AUTO)
    termination = finish(run)
    assert termination.exit_code == ExitCode.OUT_OF_MEMORY
    assert termination.exit_code.permanent
    assert "even Bottleneck needs about 0.00 GiB of memory and 0.00 GiB are there" in termination.message
    assert not Path(run.work_dir, "checkpoints").exists()
    assert not Path(run.work_dir, "choice").exists()


# ---- restarts ----


@pytest.mark.usefixtures("unchecked_export")
def test_a_restart_keeps_the_choice_though_memory_has_changed(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = classifier(tmp_path / "undisturbed", tiny_bert, AUTO)
    complete(undisturbed)
    run = classifier(tmp_path / "stopped", tiny_bert, AUTO)
    stop_at_second = functools.partial(processes.signal_before, "finetune_trainer.loop:TrainingLoop.train_step", 2)
    assert run_trainer(run, stop_at_second) == ExitCode.STOPPED
    memory_is(monkeypatch, 1)  # nothing would be chosen now
    choice = choice_of(complete(run))
    assert choice.strategy == "Bottleneck"
    said = notes(run)
    assert f"strategy.auto keeps its first choice, Bottleneck: {choice.reason}" in said
    assert any(note.startswith("memory has changed since: Bottleneck needs about") for note in said)
    assert any(note.startswith("resumed from the checkpoint at step 2") for note in said)
    assert end_state(run) == end_state(undisturbed)


@pytest.mark.usefixtures("unchecked_export", "many_from_60_rows")
def test_a_restart_keeps_adapters_though_full_tuning_would_fit_now(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = classifier(tmp_path, tiny_bert, AUTO)
    memory_is(monkeypatch, room_for_adapters_alone(run, tiny_bert))
    first = complete(run)
    assert choice_of(first).strategy == "Bottleneck"
    assert choice_of(first).reason.startswith("Full needs about")
    memory_is(monkeypatch, None)
    assert choice_of(complete(run)) == choice_of(first)


def room_for_adapters_alone(run: Run, model: Path) -> int:
    """Just enough memory."""
    facts = read.read_facts(run, make_task(run, model), model, CPU)
    return choose.needed_bytes(choose.BOTTLENECK, facts)


# ---- several processes ----


def test_of_several_processes_the_one_with_the_least_memory_decides_for_all(tiny_bert: Path, tmp_path: Path) -> None:
    run = on_nodes(classifier(tmp_path, tiny_bert, AUTO), 2)
    many = functools.partial(choosing.many_rows_are, 60)
    little = functools.partial(choosing.memory_is, room_for_adapters_alone(run, tiny_bert))
    plenty = functools.partial(choosing.memory_is, 2**40)
    assert run_ranks(run, [many, plenty], [many, little]) == [0, 0]
    choices = [choice_of(last_word(run, rank)) for rank in range(2)]
    assert choices[0] == choices[1]
    assert choices[0].strategy == "Bottleneck"
    assert choices[0].reason.startswith("Full needs about")
    # The next try is on other nodes: the first process knows what was chosen, the second hears it.
    Path(run.work_dir, "result.json").unlink()  # or there would be none
    assert run_ranks(run, [many, plenty], [many, plenty]) == [0, 0]
    assert [choice_of(last_word(run, rank)) for rank in range(2)] == choices


def test_where_nothing_fits_in_one_of_several_processes_all_end_with_that_word(tiny_bert: Path, tmp_path: Path) -> None:
    run = on_nodes(classifier(tmp_path, tiny_bert, AUTO), 2)
    none, plenty = (functools.partial(choosing.memory_is, size) for size in (1, 2**40))
    assert run_ranks(run, [plenty], [none]) == [ExitCode.OUT_OF_MEMORY] * 2
    for rank in range(2):
        assert "even Bottleneck needs about" in last_word(run, rank).message


@pytest.mark.parametrize("change", ["uid", "prefer", "rows"])
@pytest.mark.usefixtures("unchecked_export", "many_from_60_rows")
def test_the_choice_of_another_job_spec_or_data_is_not_kept(tiny_bert: Path, tmp_path: Path, change: str) -> None:
    run = classifier(tmp_path, tiny_bert, CHEAP)
    complete(run)
    content = run.to_json()
    if change == "uid":
        content["uid"] = "another"
    if change in ("prefer", "rows"):
        content["spec"]["strategy"] = AUTO
    if change == "rows":
        complete(Run.model_validate_json(json.dumps(content)))
        lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "train.jsonl").write_text("".join(lines[:-1]))
    again = Run.model_validate_json(json.dumps(content))
    choice = choice_of(complete(again))
    expected = {"uid": "Bottleneck", "prefer": "Full", "rows": "Bottleneck"}
    assert choice.strategy == expected[change]
    assert sum("strategy.auto chooses" in note for note in notes(again)) == {"uid": 2, "prefer": 2, "rows": 3}[change]
    assert not any("keeps its first choice" in note for note in notes(again))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": 1}', '{"files": {}}'])
@pytest.mark.usefixtures("unchecked_export")
def test_a_torn_choice_is_made_again(tiny_bert: Path, tmp_path: Path, content: str) -> None:
    run = classifier(tmp_path, tiny_bert, AUTO)
    first = complete(run)
    weights = output_weights(run)
    for path in Path(run.work_dir, "choice").iterdir():
        path.write_text(content)
    assert choice_of(complete(run)) == choice_of(first)
    assert output_weights(run) == weights
    assert sum("strategy.auto chooses" in note for note in notes(run)) == 2


@pytest.mark.parametrize("event", [10, 60, 110, 160, 10_000])
def test_killed_while_the_choice_is_written_it_is_whole_or_made_again(
    tiny_bert: Path, tmp_path: Path, event: int
) -> None:
    run = classifier(tmp_path, tiny_bert, AUTO)
    kill = functools.partial(processes.kill_within, "finetune_trainer.storage:write_directory", 1, event)
    assert run_trainer(run, kill) == -signal.SIGKILL
    was_kept = Path(run.work_dir, "choice").exists()
    assert run_trainer(run) == ExitCode.COMPLETE
    assert any("keeps its first choice" in note for note in notes(run)) == was_kept
    assert not leftovers(Path(run.work_dir))
