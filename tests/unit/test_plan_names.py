"""Names, labels and paths of a job's children follow from the job alone."""

from __future__ import annotations

import re

import pytest

from contract_cases import VALID_SPECS, changed, valid_job, values_in
from finetune_api.manifest import parse_job
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.plan import names
from finetune_operator.plan.run import make_run


def spec(**fields: object) -> FineTuneJobSpec:
    manifest = valid_job()
    for name, value in fields.items():
        manifest = changed(manifest, ("spec", name), value)
    return parse_job(manifest).spec


@pytest.mark.parametrize(
    ("uri", "claim"),
    [
        ("pvc://models/router", "models"),
        ("pvc://models", "models"),
        ("pvc://models/", "models"),
        ("file:///models/router", None),
        ("hf://owner/name", None),
        ("s3://bucket/x", None),
    ],
)
def test_only_a_pvc_uri_has_a_claim(uri: str, claim: str | None) -> None:
    assert names.claim_of(uri) == claim


def test_a_job_without_claims_mounts_none() -> None:
    assert names.claims(spec()) == {}


def test_sources_are_mounted_to_be_read_and_the_output_to_be_written() -> None:
    found = names.claims(
        spec(
            model={"uri": "pvc://base/minilm"},
            data={"train": {"uri": "pvc://tickets/train.jsonl"}, "evaluation": {"uri": "pvc://tickets/eval.jsonl"}},
            output={"uri": "pvc://models/router"},
        )
    )
    assert found == {"base": False, "tickets": False, "models": True}


def test_a_claim_that_is_read_and_written_is_mounted_once_to_be_written() -> None:
    found = names.claims(spec(model={"uri": "pvc://all/base"}, output={"uri": "pvc://all/tuned"}))
    assert found == {"all": True}


@pytest.mark.parametrize("name", VALID_SPECS)
def test_every_source_of_the_contract_is_mounted(name: str) -> None:
    places = [path for path in values_in(valid_job(name)) if path[-1] == "uri" and "output" not in path]
    for number, path in enumerate(places):
        claim = f"claim-{number}"
        manifest = changed(valid_job(name), path[:-1], {"uri": f"pvc://{claim}/x"})
        assert names.claims(parse_job(manifest).spec).get(claim) is False, path


def test_checkpoints_are_beside_the_output_and_bound_to_the_uid() -> None:
    assert names.work_dir(spec(output={"uri": "pvc://models/router"}), "u1") == "/workspace/volumes/models/.finetune/u1"


def test_checkpoints_are_in_scratch_space_when_the_output_is_no_claim() -> None:
    assert names.work_dir(spec(), "u1") == f"{names.SCRATCH_MOUNT}/.finetune/u1"


def test_the_trainer_finds_every_claim_where_it_is_mounted() -> None:
    run = make_run("team-a", "router", "u1", spec(output={"uri": "pvc://models/router"}))
    assert str(run.local_path("pvc://models/router")) == "/workspace/volumes/models/router"
    assert (run.namespace, run.name, run.uid) == ("team-a", "router", "u1")


def test_children_are_owned_so_that_they_go_with_their_job() -> None:
    owner = names.owner_reference("router", "u1")
    assert owner["controller"] is True
    assert (owner["kind"], owner["name"], owner["uid"]) == ("FineTuneJob", "router", "u1")


def test_every_label_value_is_one_that_kubernetes_takes_for_the_longest_name() -> None:
    for value in names.labels("a" * 50).values():
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)


def test_the_longest_name_has_names_for_a_service_and_for_host_names_under_it() -> None:
    uid = "0b1e6a1c-5d4f-4c0e-9d2b-5b8f4f1c2a3d"
    for label in (names.service_name("a" * 50, uid), *names.first_address("a" * 50, uid).split(".")):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", label)
