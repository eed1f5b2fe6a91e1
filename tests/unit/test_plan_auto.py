"""What strategy.auto chose, on its way from the trainer's report into the status and to people."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.trainer_status import Report, progress_of, report_of
from finetune_api.v1alpha1.status import ChosenStrategy, StrategyChoice
from finetune_cli.kubectl.describe import describe
from finetune_cli.kubectl.listing import list_jobs
from finetune_cli.kubectl.result import result
from finetune_operator.plan.plan import Plan
from kubectl_records import Object, Recorded, console, job, progress, said
from plan_builders import (
    NOW,
    JobBuilder,
    at,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_word,
    plan_of,
)
from status_samples import full_status

CHOICE = StrategyChoice(strategy=ChosenStrategy.LORA, reason="2,000 learnt tokens are few")
WRITTEN = {"strategy": "LoRA", "reason": "2,000 learnt tokens are few"}


def auto_job() -> JobBuilder:
    return make_job().spec(strategy={"auto": {}}, training=None)


def status_of(plan: Plan) -> dict[str, Any]:
    assert plan.status is not None
    return plan.status


def running(job: JobBuilder, choice: StrategyChoice | None) -> dict[str, Any]:
    """The status of a job whose trainer has reported once."""
    return status_of(plan_of(job, make_child(), make_pod().running(), progress=make_progress(0, choice=choice)))


# ---- the status ----


def test_until_the_trainer_has_chosen_the_strategy_is_auto() -> None:
    assert status_of(plan_of(auto_job()))["strategy"] == "Auto"
    assert running(auto_job(), None)["strategy"] == "Auto"


def test_then_it_is_the_chosen_one_with_the_reason_beside_it() -> None:
    status = running(auto_job(), CHOICE)
    assert status["strategy"] == "LoRA"
    assert status["progress"]["choice"] == WRITTEN


def test_a_pod_cannot_choose_for_a_job_that_gives_a_strategy() -> None:
    assert running(make_job(), CHOICE)["strategy"] == "Full"


def test_the_last_word_brings_the_choice_though_no_report_came() -> None:
    word = make_word(ExitCode.COMPLETE, "done", progress=make_progress(100, choice=CHOICE))
    status = status_of(plan_of(auto_job(), make_child().complete(NOW), make_pod().succeeded(word)))
    assert (status["phase"], status["strategy"]) == ("Complete", "LoRA")
    assert status["progress"]["choice"] == WRITTEN


def test_a_later_try_that_fails_before_it_came_to_the_choice_does_not_make_the_job_forget_it() -> None:
    job = auto_job().status(running(auto_job(), CHOICE))
    word = make_word(ExitCode.DATA_INVALID, "no rows", progress=make_progress(0))
    status = status_of(plan_of(job, make_child().fails(at(60)), make_pod().failed(11, word=word), now=at(61)))
    assert (status["phase"], status["strategy"]) == ("Failed", "LoRA")
    assert status["progress"]["choice"] == WRITTEN


def test_a_job_that_failed_because_nothing_fits_says_so() -> None:
    word = make_word(
        ExitCode.OUT_OF_MEMORY, "spec.strategy.auto: even LoRA needs about 9 GiB", progress=make_progress(0)
    )
    status = status_of(plan_of(auto_job(), make_child().fails(NOW), make_pod().failed(16, word=word)))
    assert status["strategy"] == "Auto"
    [failed] = [each for each in status["conditions"] if each["type"] == "Failed"]
    assert (failed["reason"], failed["message"]) == ("OutOfMemory", "spec.strategy.auto: even LoRA needs about 9 GiB")


# ---- the report ----


@pytest.mark.parametrize(
    "choice",
    [
        {"strategy": "Telepathy", "reason": "a newer trainer has it"},
        {"strategy": "LoRA", "reason": "r" * 513},
        {"strategy": "LoRA", "reason": ""},
    ],
)
def test_a_choice_that_is_not_understood_spoils_no_report(choice: dict[str, str]) -> None:
    body = report_of(make_progress(3, loss=0.5), NOW).model_dump(mode="json", by_alias=True)
    body["trainerStatus"]["choice"] = choice
    arrived = progress_of(Report.model_validate(body))
    assert (arrived.step, arrived.loss, arrived.choice) == (3, 0.5, None)


def test_a_choice_of_a_newer_trainer_may_say_more() -> None:
    body = report_of(make_progress(3, choice=CHOICE), NOW).model_dump(mode="json", by_alias=True)
    body["trainerStatus"]["choice"]["confidence"] = "high"
    assert progress_of(Report.model_validate(body)).choice == CHOICE


# ---- what people see ----


def chosen(strategy: str) -> Object:
    """A Complete job whose trainer chose."""
    body = job(phase="Complete", strategy=strategy, progress=progress(40, choice={**WRITTEN, "strategy": strategy}))
    body["spec"]["strategy"] = {"auto": {}}
    body["status"]["result"] = full_status().to_json()["result"]
    return body


def test_describe_gives_the_reason() -> None:
    out = console()
    assert describe(Recorded(chosen("LoRA")), "team", "router", out) == 0
    assert "strategy LoRA" in said(out)
    assert "LoRA, by strategy.auto: 2,000 learnt tokens are few" in said(out)


def test_list_shows_the_chosen_strategy() -> None:
    out = console()
    assert list_jobs(Recorded(chosen("LoRA")), "team", out) == 0
    assert "LoRA" in said(out)


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        ("LoRA", "model = PeftModel.from_pretrained(base, directory)"),
        ("Bottleneck", "trust_remote_code=True"),
        ("Full", "from_pretrained(directory)\n"),
    ],
)
def test_result_says_how_to_load_what_was_chosen(strategy: str, line: str) -> None:
    out = console()
    assert result(Recorded(chosen(strategy)), "team", "router", out) == 0
    assert line in said(out)
    assert ("peft" in said(out)) == (strategy == "LoRA")
