"""Jobs' series come from the store, under labels from fixed sets, and go when the job goes."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api.v1alpha1.status import Phase, Progress
from finetune_operator.engine.store import Store
from finetune_operator.metrics.figures import Figures, figures_of
from finetune_operator.metrics.jobs import JobCollector
from plan_builders import JOB_UID, KEY, NOW, make_job, make_progress
from status_samples import full_status


def scrape(store: Store) -> str:
    registry = CollectorRegistry()
    registry.register(JobCollector(store.samples, lambda: NOW))
    return generate_latest(registry).decode()


def times_in(text: str) -> dict[str, float]:
    found = re.findall(r"^finetune_job_(\w+)_time_seconds\{[^}]*\} (\S+)$", text, flags=re.MULTILINE)
    return {name: float(value) for name, value in found}


def complete() -> dict[str, object]:
    return full_status().model_copy(update={"phase": Phase.COMPLETE}).to_json()


def test_an_ended_job_keeps_its_last_figures_and_what_it_forgot() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().status(complete()).obj())
    text = scrape(store)
    assert 'finetune_job_steps_done{name="router",namespace="team-a"} 50.0' in text
    assert 'finetune_job_forgetting{metric="before",name="router",namespace="team-a"} 0.5' in text
    assert 'finetune_job_forgetting{metric="after",name="router",namespace="team-a"} 0.25' in text
    assert 'finetune_job_eval_metric{metric="accuracy",name="router",namespace="team-a"} 0.5' in text


def test_retention_divergence_and_the_terms_of_the_loss_have_series_of_their_own() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().obj())
    evaluation = {"accuracy": 0.5, "retentionAccuracy": 0.25, "retentionMacroF1": 0.125, "klToBase": 0.03125}
    terms = {"task": 2.0, "selfAttention": 3.0, "invented": 4.0}
    store.put_progress(KEY, make_progress(1, evaluation=evaluation, loss_terms=terms, forgetting=-0.25))
    families = {family.name: family.samples for family in text_string_to_metric_families(scrape(store))}

    def found(name: str, label: str) -> dict[str, float]:
        return {sample.labels[label]: sample.value for sample in families[f"finetune_job_{name}"]}

    assert found("eval_metric", "metric") == {"accuracy": 0.5}
    assert found("retention_metric", "metric") == {"accuracy": 0.25, "macroF1": 0.125}
    assert found("forgetting", "metric") == {"drop": -0.25}
    assert found("divergence", "name") == {"router": 0.03125}
    assert found("loss_term", "term") == {"task": 2.0, "selfAttention": 3.0}


def test_a_job_tells_when_it_was_created_first_ran_and_ended() -> None:
    store = Store()
    job = make_job().metadata(creationTimestamp="1970-01-01T00:00:05Z")
    store.put_fine_tune_job(job.obj())
    assert times_in(scrape(store)) == {"creation": 5}
    times = {"startTime": "1970-01-01T00:01:00Z", "completionTime": "1970-01-01T01:00:00Z"}
    store.put_fine_tune_job(job.metadata(resourceVersion="99").status({**complete(), **times}).obj())
    assert times_in(scrape(store)) == {"creation": 5, "start": 60, "completion": 3600}


def test_a_job_that_is_made_anew_under_its_name_has_its_own_times() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().status(complete()).obj())
    made_anew = {"uid": "another", "resourceVersion": "99", "creationTimestamp": "1970-01-01T00:00:07Z"}
    store.put_fine_tune_job(make_job().metadata(**made_anew).obj())
    assert times_in(scrape(store)) == {"creation": 7}


def test_a_report_is_seen_at_once() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().obj())
    store.put_progress(KEY, make_progress(42, loss=0.25))
    assert 'finetune_job_loss{name="router",namespace="team-a"} 0.25' in scrape(store)


@pytest.mark.security(20)
def test_a_job_that_goes_takes_its_series_along() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().status(complete()).obj())
    assert "router" in scrape(store)
    store.drop_fine_tune_job(KEY, JOB_UID)
    assert "router" not in scrape(store)


@pytest.mark.security(20)
def test_a_trainer_cannot_make_series_by_inventing_names() -> None:
    invented = {f"invented_{number}": 1.0 for number in range(31)}
    store = Store()
    store.put_fine_tune_job(make_job().obj())
    store.put_progress(KEY, make_progress(1, evaluation={"accuracy": 0.5, **invented}))
    text = scrape(store)
    assert "invented" not in text
    assert 'finetune_job_eval_metric{metric="accuracy",name="router",namespace="team-a"} 0.5' in text


def test_what_is_not_known_has_no_figure() -> None:
    nothing = figures_of(None, None)
    assert nothing == Figures()
    planless = figures_of(Progress(step=0, total_steps=0, percent=0), None)
    assert (planless.steps_done, planless.progress_ratio) == (0, None)  # no share of nothing


def test_the_figures_of_an_ended_job_are_small() -> None:
    status = full_status()
    tracemalloc.start()
    kept = [figures_of(status.progress, status.result) for _ in range(1000)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 1000
    assert size / 1000 < 1024
