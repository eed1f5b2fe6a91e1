"""The table of wrong manifests against the models alone; tests/integration/test_crd.py asks the API server too."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from contract_cases import VALID_SPECS, Case, cases, changed, generic, json_path, spec_fields, valid_job, values_in
from finetune_api.manifest import parse_job
from finetune_api.problems import problems_of
from finetune_api.v1alpha1.job import COLUMNS_OF_TASK, METRICS_OF_TASK, Task
from finetune_api.v1alpha1.sources import Columns
from finetune_api.v1alpha1.training import Metric


def test_valid_manifests_give_every_field_of_the_spec() -> None:
    given = {generic(path) for name in VALID_SPECS for path in values_in(valid_job(name))}
    assert given == set(spec_fields())


def test_every_wrong_manifest_is_refused_by_field() -> None:
    wrong = [case for case in cases() if case.refused]
    assert len(wrong) > 500
    assert not [case.name for case in wrong if not refused_by_field(case)]


def refused_by_field(case: Case) -> bool:
    try:
        parse_job(case.manifest)
    except ValidationError as error:
        return any(str(problem).startswith(case.field) for problem in problems_of(error))
    return False


@pytest.mark.parametrize("name", VALID_SPECS)
def test_every_source_is_told_with_its_field(name: str) -> None:
    told = [f"{field}.uri" for field, _ in parse_job(valid_job(name)).spec.sources()]
    given = [json_path(path) for path in values_in(valid_job(name)) if path[-1] == "uri" and "output" not in path]
    assert sorted(told) == sorted(given)


def test_every_task_has_columns_and_metrics_and_none_is_orphaned() -> None:
    assert set(COLUMNS_OF_TASK) == set(METRICS_OF_TASK) == set(Task)
    assert {name for names in COLUMNS_OF_TASK.values() for name in names} == set(Columns.model_fields)
    assert {metric for metrics in METRICS_OF_TASK.values() for metric in metrics} == set(Metric)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("minimal", "accuracy"),
        ("everything-of-full", "macroF1"),
        ("generation", "perplexity"),
        ("token-classification", "entityF1"),
        ("question-answering", "exactMatch"),
    ],
)
def test_the_metric_that_decides_is_the_given_one_or_the_tasks_first(name: str, metric: str) -> None:
    assert parse_job(valid_job(name)).spec.metric() == metric


@pytest.mark.parametrize(
    ("training", "steps"),
    [({}, 12), ({"epochs": 2}, 8), ({"epochs": 2, "batchSize": 200}, 2), ({"maxSteps": 5}, 5)],
)
def test_steps_are_the_given_ones_or_those_of_the_epochs_and_a_part_of_a_batch_is_one(
    training: dict[str, int], steps: int
) -> None:
    assert parse_job(changed(valid_job(), ("spec", "training"), training)).spec.training.num_steps(100) == steps


def test_a_tenth_is_held_out_or_the_share_that_is_given() -> None:
    assert parse_job(valid_job()).spec.data.held_out_fraction() == 0.1
    assert parse_job(valid_job("generation")).spec.data.held_out_fraction() == 0.2


def test_what_is_lower_when_better() -> None:
    assert [metric for metric in Metric if not metric.higher_is_better] == [Metric.LOSS, Metric.PERPLEXITY]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("minimal", "Full"),
        ("adapter-defaults", "Bottleneck"),
        ("lora", "LoRA"),
        ("prompt-defaults", "PromptTuning"),
        ("distillation", "Distillation"),
        ("auto", "Auto"),
    ],
)
def test_a_strategy_has_one_word(name: str, word: str) -> None:
    assert parse_job(valid_job(name)).spec.strategy.name == word


def test_models_do_not_change() -> None:
    spec = parse_job(valid_job()).spec
    with pytest.raises(ValidationError):
        setattr(spec, "suspend", True)  # noqa: B010 - the type checker knows already
