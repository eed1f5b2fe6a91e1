"""The rules of strategy.auto, as a table and as properties: facts in, a strategy and its reason out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from contract_cases import changed, valid_job
from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import parse_job
from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.status import StrategyChoice
from finetune_api.v1alpha1.strategy import Preference
from finetune_trainer.auto.choose import FULL_FROM_ROWS, HEADROOM, Choice, choose
from finetune_trainer.auto.facts import Device, Facts, Load, ModelFacts
from finetune_trainer.auto.memory import adapter_bytes, full_tuning_bytes
from finetune_trainer.errors import TrainerError

ACCURACY, COST = Preference.ACCURACY, Preference.COST
GIB = 2**30
# BERT base, and a language model of 1.2 billion parameters.
ENCODER = ModelFacts("BertForSequenceClassification", 110_000_000, 12, 768, 12, 2, 1_800_000, 1_300_000)
DECODER = ModelFacts("LlamaForCausalLM", 1_236_000_000, 16, 2048, 32, 128_256, 8_500_000, 5_600_000)
DEVICE = Device(memory=64 * GIB, activation_bytes=4, keeps_attention=True)
CLASSIFIER = Facts(
    task=Task.TEXT_CLASSIFICATION,
    rows=10_000,
    units=10_000,
    has_retention=False,
    model=ENCODER,
    training=Load(rows=32, tokens=128, units=1),
    evaluation=Load(rows=64, tokens=128, units=1),
    device=DEVICE,
)
GENERATOR = replace(
    CLASSIFIER,
    task=Task.TEXT_GENERATION,
    units=2_000_000,
    model=DECODER,
    training=Load(rows=4, tokens=512, units=511),
    evaluation=Load(rows=4, tokens=512, units=511),
)
FEW = replace(CLASSIFIER, rows=FULL_FROM_ROWS - 1)
NO_BOTTLENECKS = replace(ENCODER, bottleneck_parameters=None)
NO_ADAPTERS = replace(NO_BOTTLENECKS, lora_parameters=None)


def with_memory(facts: Facts, gib: float | None) -> Facts:
    return replace(facts, device=replace(facts.device, memory=None if gib is None else int(gib * GIB)))


def chosen(facts: Facts, prefer: Preference) -> Choice | None:
    """The choice; None where nothing fits."""
    try:
        return choose(facts, prefer)
    except TrainerError:
        return None


@pytest.mark.parametrize(
    ("facts", "prefer", "strategy", "because"),
    [
        (CLASSIFIER, ACCURACY, "Full", "10,000 training rows"),
        (replace(CLASSIFIER, rows=FULL_FROM_ROWS), ACCURACY, "Full", "2,500 training rows"),
        (FEW, ACCURACY, "Bottleneck", "2,499 training rows are fewer than 2,500"),
        (replace(FEW, task=Task.TOKEN_CLASSIFICATION), ACCURACY, "Bottleneck", "2,499 training rows"),
        (replace(FEW, task=Task.QUESTION_ANSWERING), ACCURACY, "Bottleneck", "2,499 training rows"),
        (replace(FEW, model=NO_BOTTLENECKS), ACCURACY, "LoRA", "2,499 training rows"),
        (replace(FEW, model=NO_ADAPTERS), ACCURACY, "Full", "no place for adapters is known in BertFor"),
        (replace(FEW, model=NO_ADAPTERS), COST, "Full", "no place for adapters is known in BertFor"),
        (CLASSIFIER, COST, "Bottleneck", "prefer is Cost, and adapters train 1.6% as many parameters"),
        (replace(CLASSIFIER, has_retention=True), ACCURACY, "Bottleneck", "evaluation.retention is given"),
        (with_memory(CLASSIFIER, 5), ACCURACY, "Bottleneck", "Full needs about "),
        (with_memory(CLASSIFIER, None), ACCURACY, "Full", "10,000 training rows"),
        (GENERATOR, ACCURACY, "LoRA", "2,000,000 learnt tokens are within the 11,200,000 or so"),
        (replace(GENERATOR, units=11_200_001), ACCURACY, "Full", "11,200,001 learnt tokens are more"),
        (replace(GENERATOR, units=11_200_001), COST, "LoRA", "prefer is Cost"),
        (with_memory(replace(GENERATOR, units=10**9), 28), ACCURACY, "LoRA", "28.00 GiB are there; LoRA fits"),
    ],
)
def test_the_table(facts: Facts, prefer: Preference, strategy: str, because: str) -> None:
    choice = choose(facts, prefer)
    assert choice.strategy.name == strategy
    assert because in choice.reason


@pytest.mark.parametrize(
    ("facts", "cheapest"),
    [
        (with_memory(CLASSIFIER, 1), "Bottleneck"),
        (with_memory(GENERATOR, 4), "LoRA"),
        (with_memory(replace(CLASSIFIER, model=NO_ADAPTERS), 1), "Full"),
    ],
)
def test_where_nothing_fits_it_is_said_what_is_needed_and_what_is_there(facts: Facts, cheapest: str) -> None:
    with pytest.raises(TrainerError) as raised:
        choose(facts, ACCURACY)
    assert raised.value.code == ExitCode.OUT_OF_MEMORY
    assert f"even {cheapest} needs about " in raised.value.message
    assert f"{(facts.device.memory or 0) / GIB:.2f} GiB are there" in raised.value.message
    assert (
        f"{facts.training.rows} rows of up to {facts.training.tokens} tokens at once in training"
        in raised.value.message
    )
    assert "training.microBatchSize" in raised.value.hint


def test_where_the_evaluation_is_what_does_not_fit_its_field_is_named() -> None:
    with pytest.raises(TrainerError, match="with 64 rows of up to 512 tokens at once in evaluation") as raised:
        choose(with_memory(replace(GENERATOR, evaluation=replace(GENERATOR.evaluation, rows=64)), 40), ACCURACY)
    assert raised.value.hint.startswith("set evaluation.batchSize or data.maxLength lower")


def test_what_is_chosen_fits_always_and_more_memory_never_takes_a_strategy_away() -> None:
    seen = []
    for mebibytes in range(256, 16 * 1024, 64):
        facts = with_memory(CLASSIFIER, mebibytes / 1024)
        choice = chosen(facts, ACCURACY)
        if choice is None:
            seen.append("nothing")
            continue
        is_full = choice.strategy.adapter is None
        needed = full_tuning_bytes(facts) if is_full else adapter_bytes(facts, ENCODER.bottleneck_parameters or 0)
        assert HEADROOM * needed <= (facts.device.memory or 0) + 1
        seen.append(choice.strategy.name)
    assert [name for name, _ in itertools.groupby(seen)] == ["nothing", "Bottleneck", "Full"]


MANIFESTS = {
    Task.TEXT_CLASSIFICATION: "auto-defaults",
    Task.TEXT_GENERATION: "generation",
    Task.TOKEN_CLASSIFICATION: "token-classification",
    Task.QUESTION_ANSWERING: "question-answering",
}


@pytest.mark.parametrize("task", Task)
def test_every_choice_has_a_reason_and_is_a_strategy_that_the_contract_takes_for_the_task(task: Task) -> None:
    answers: dict[str, int] = {}
    models = [ENCODER, DECODER, NO_BOTTLENECKS, NO_ADAPTERS]
    for model, rows, units, retains, gib, prefer in itertools.product(
        models, (1, 2_500, 10**7), (1, 10**6, 10**9), (False, True), (None, 0.0, 2, 20, 2_000), Preference
    ):
        facts = replace(CLASSIFIER, task=task, model=model, rows=rows, units=units, has_retention=retains)
        choice = chosen(with_memory(facts, gib), prefer)
        if choice is None:
            assert gib is not None
            continue
        told = StrategyChoice.model_validate({"strategy": choice.strategy.name, "reason": choice.reason})
        assert told.reason.isprintable()
        spec = parse_job(changed(valid_job(MANIFESTS[task]), ("spec", "strategy"), choice.strategy.to_json())).spec
        assert spec.strategy == choice.strategy
        answers[told.strategy] = answers.get(told.strategy, 0) + 1
    assert set(answers) == ({"Full", "LoRA"} if task == Task.TEXT_GENERATION else {"Full", "LoRA", "Bottleneck"})
