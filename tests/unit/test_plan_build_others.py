"""The headless Service, the output's claim and the Events."""

from __future__ import annotations

from datetime import timedelta

import pytest

from contract_cases import changed, valid_job
from finetune_api.manifest import parse_job
from finetune_api.run import Run
from finetune_operator.plan import names
from finetune_operator.plan.builders.claim import build_claim
from finetune_operator.plan.builders.event import build_event
from finetune_operator.plan.builders.pod import build_pod_template
from finetune_operator.plan.builders.service import build_service
from finetune_operator.plan.events import Event
from finetune_operator.plan.run import make_run
from plan_builders import NOW, SETTINGS, make_job, snapshot


def make(**fields: object) -> Run:
    manifest = valid_job()
    for name, value in fields.items():
        manifest = changed(manifest, ("spec", name), value)
    return make_run("team-a", "router", "u1", parse_job(manifest).spec)


def test_one_node_needs_no_service() -> None:
    assert build_service(make()) is None


def test_nodes_find_each_other_by_a_headless_service_before_they_are_ready() -> None:
    run = make(resources={"nodes": 2}, output={"uri": "pvc://models/router"})
    service = build_service(run)
    assert service is not None
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    template = build_pod_template(run, SETTINGS)
    assert service["metadata"]["name"] == template["spec"]["subdomain"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert [owner["uid"] for owner in service["metadata"]["ownerReferences"]] == ["u1"]


def test_two_jobs_that_have_one_name_after_each_other_never_share_a_service() -> None:
    """The first one's is deleted some time after the first, and would take the second's nodes from each other."""
    run = make(resources={"nodes": 2}, output={"uri": "pvc://models/router"})
    uids = ("0b1e6a1c-5d4f-4c0e-9d2b-5b8f4f1c2a3d", "7c9d2f4e-1a2b-4c3d-8e5f-6a7b8c9d0e1f")
    services = [build_service(run.model_copy(update={"uid": uid})) for uid in uids]
    found = [service["metadata"]["name"] for service in services if service]
    assert found == ["router-0b1e6a1c", "router-7c9d2f4e"]


@pytest.mark.parametrize("uri", ["pvc://models/router", "file:///models/router"])
def test_a_claim_is_made_only_when_it_is_asked_for(uri: str) -> None:
    assert build_claim(make(output={"uri": uri})) is None


def test_a_claim_outlives_its_job() -> None:
    claim = build_claim(make(output={"uri": "pvc://models/router", "createClaim": {"size": "20Gi"}}))
    assert claim is not None
    assert claim["metadata"]["name"] == "models"
    assert "ownerReferences" not in claim["metadata"]
    assert names.JOB_NAME_LABEL not in claim["metadata"]["labels"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


def test_a_claim_that_several_nodes_mount_is_for_many() -> None:
    output = {"uri": "pvc://models/router", "createClaim": {"size": "20Gi"}}
    claim = build_claim(make(resources={"nodes": 2}, output=output))
    assert claim is not None
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_claim_has_the_storage_class_that_is_given() -> None:
    output = {"uri": "pvc://models/router", "createClaim": {"size": "1Gi", "storageClassName": "fast"}}
    claim = build_claim(make(output=output))
    assert claim is not None
    assert claim["spec"]["storageClassName"] == "fast"


def test_an_event_is_about_the_job_and_by_this_replica() -> None:
    job = snapshot(make_job()).job
    event = build_event(job, Event("Warning", "DataInvalid", "no rows"), "replica-1", NOW)
    assert event["regarding"] == {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "namespace": "team-a",
        "name": "router",
        "uid": job.uid,
    }
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "DataInvalid", "no rows")
    assert event["reportingInstance"] == "replica-1"
    assert event["eventTime"] == "2026-01-01T12:00:00.000000Z"


def test_two_events_never_have_one_name() -> None:
    job = snapshot(make_job()).job
    events = [
        build_event(job, Event("Normal", reason, ""), "i", NOW + timedelta(microseconds=late))
        for reason in ("Running", "Complete")
        for late in (0, 1)
    ]
    assert len({event["metadata"]["name"] for event in events}) == 4


def test_an_event_keeps_the_limits_of_the_api() -> None:
    event = build_event(snapshot(make_job()).job, Event("Normal", "R" * 200, "n" * 2000), "i" * 200, NOW)
    assert (len(event["reason"]), len(event["note"]), len(event["reportingInstance"])) == (128, 1024, 128)


def test_the_limit_of_a_note_is_in_bytes_and_no_character_is_cut() -> None:
    event = build_event(snapshot(make_job()).job, Event("Warning", "DataInvalid", "no rows: " + "标签" * 450), "i", NOW)
    assert event["note"] == "no rows: " + "标签" * 169
    assert len(event["note"].encode()) == 1023
