"""A run finds its paths, stays inside its volumes, and knows by its digest whether a checkpoint is its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from contract_cases import VALID_SPECS, changed, valid_job
from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import parse_job
from finetune_api.newer import read_known
from finetune_api.run import Run, Termination, UnresolvedUri
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1.training import TrainingSpec
from status_samples import full_status


def make_run(manifest: dict[str, Any] | None = None) -> Run:
    return Run(
        name="job",
        uid="0a1b",
        spec=parse_job(manifest or valid_job()).spec,
        volumes={"data": "/mnt/data", "models": "/mnt/models"},
        work_dir="/work",
        manifest_dir="/home/me/jobs",
    )


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file://a/b", "/home/me/jobs/a/b"),
        ("pvc://data/x/y.jsonl", "/mnt/data/x/y.jsonl"),
        ("pvc://models", "/mnt/models"),
        ("pvc://models/", "/mnt/models"),
        ("pvc://data//etc/passwd", "/mnt/data/etc/passwd"),
        ("pvc://data///etc", "/mnt/data/etc"),
    ],
)
def test_uris_are_found_on_this_machine(uri: str, path: str) -> None:
    assert make_run().local_path(uri) == Path(path)


def test_what_was_downloaded_is_found_and_is_in_no_file() -> None:
    run = make_run().model_copy(update={"downloads": {"s3://bucket/x": "/work/downloads/x"}})
    assert run.local_path("s3://bucket/x") == Path("/work/downloads/x")
    assert "downloads" not in run.to_json()


@settings(deadline=None)  # another process may have the machine
@given(st.text("/.ab%é\\", max_size=12))
def test_no_valid_uri_leaves_its_volume(path: str) -> None:
    uri = f"pvc://data/{path}"
    try:
        parse_job(changed(valid_job(), ("spec", "model", "uri"), uri))
    except ValidationError:
        return
    assert make_run().local_path(uri).is_relative_to("/mnt/data")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("pvc://other/x", "the claim 'other' is not mounted (mounted: data, models)"),
        ("hf://owner/name", "hf://owner/name is not a path"),
        ("s3://bucket/x", "s3://bucket/x is not a path"),
        ("https://host/x", "https://host/x is not a path"),
    ],
)
def test_what_has_no_place_here_is_said(uri: str, said: str) -> None:
    with pytest.raises(UnresolvedUri, match=re.escape(said)):
        make_run().local_path(uri)


def test_digest_is_the_same_in_another_process() -> None:
    run = make_run(valid_job("everything-of-full"))
    program = "import sys; from finetune_api.run import Run; print(Run.model_validate_json(sys.stdin.read()).digest())"
    child = subprocess.run(
        [sys.executable, "-c", program],
        input=run.model_dump_json(by_alias=True),
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == run.digest()
    assert re.fullmatch("[0-9a-f]{64}", run.digest())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("training",), {"batchSize": 32}),  # the default, said
        (("training",), {"warmupRatio": "6e-2"}),  # the same number
        (("output", "uri"), "file:///elsewhere"),
        (("checkpoint",), {"everySteps": 1}),
        (("resources",), {"cpu": "4"}),
        (("pod",), {"labels": {"a": "b"}}),
        (("queueName",), "other"),
        (("suspend",), True),
        (("backoffLimit",), 0),
        (("activeDeadlineSeconds",), 5),
        (("ttlSecondsAfterFinished",), 5),
    ],
)
def test_digest_does_not_depend_on_what_the_weights_do_not(path: tuple[str, ...], value: Any) -> None:
    assert make_run(changed(valid_job(), ("spec", *path), value)).digest() == make_run().digest()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("task",), "TextGeneration"),
        (("model", "uri"), "file:///other"),
        (("model",), {"uri": "hf://a/b", "revision": "v2"}),
        (("data", "train", "uri"), "file:///other.jsonl"),
        (("data", "columns"), {"text": "body"}),
        (("data", "deduplicate"), False),
        (("data", "maxLength"), 64),
        (("strategy",), {"adapter": {}}),
        (("strategy", "full", "frozenLayers"), 1),
        (("training",), {"seed": 1}),
        (("training",), {"learningRate": "1e-3"}),
        (("training",), {"epochs": 1}),
        (("evaluation",), {"earlyStopping": {}}),
    ],
)
def test_digest_depends_on_what_the_weights_do(path: tuple[str, ...], value: Any) -> None:
    assert make_run(changed(valid_job(), ("spec", *path), value)).digest() != make_run().digest()


class LaterTraining(TrainingSpec):
    """The contract of a later release."""

    added: bool = False
    """A field with a default."""


class LaterSpec(FineTuneJobSpec):
    """The contract of a later release."""

    training: LaterTraining = Field(default_factory=LaterTraining)


def test_a_field_that_a_later_release_adds_leaves_digests_as_they_are() -> None:
    """Or a Job that is made anew after an upgrade would find none of its checkpoints."""
    run = make_run()

    def later(**training: Any) -> Run:
        spec = LaterSpec.model_validate({**run.spec.to_json(), "training": {**run.spec.training.to_json(), **training}})
        return run.model_copy(update={"spec": spec})

    assert later().spec.to_json()["training"]["added"] is False
    assert later().digest() == later(added=False).digest() == run.digest()
    assert later(added=True).digest() != run.digest()


def test_digests_of_different_jobs_differ() -> None:
    digests = {make_run(valid_job(name)).digest() for name in VALID_SPECS}
    assert len(digests) == len(VALID_SPECS)


@pytest.mark.parametrize("name", VALID_SPECS)
def test_a_run_survives_its_file(name: str) -> None:
    run = make_run(valid_job(name))
    assert Run.model_validate_json(json.dumps(run.to_json())) == run


def test_a_last_word_survives_its_file_and_fits_the_termination_message() -> None:
    status = full_status()
    word = Termination(
        exit_code=ExitCode.COMPLETE,
        reason=ExitCode.COMPLETE.reason,
        message="done",
        progress=status.progress,
        result=status.result,
    )
    text = word.model_dump_json(by_alias=True, exclude_none=True)
    assert Termination.model_validate_json(text) == word
    assert len(text.encode()) < 4096


def test_a_last_word_of_a_newer_trainer_is_read_without_what_is_not_known() -> None:
    status = full_status()
    known: dict[str, Any] = {"exitCode": 0, "reason": "Complete", "message": "done"}
    known |= {"progress": status.to_json()["progress"], "result": status.to_json()["result"]}
    newer = {**known, "gpuHours": {"total": "3.5"}, "result": {**known["result"], "newField": [1]}}
    newer["progress"] = {**known["progress"], "choice": {**known["progress"]["choice"], "newField": None}}
    assert read_known(Termination, json.dumps(newer)) == Termination.model_validate(known)


@pytest.mark.parametrize(
    "text", ["", "[1]", "Traceback ...", '{"exitCode": 99, "reason": "x", "message": "y", "z": 1}']
)
def test_what_is_no_last_word_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ValidationError):
        read_known(Termination, text)


def test_an_unknown_exit_code_is_refused() -> None:
    with pytest.raises(ValidationError):
        Termination.model_validate_json('{"exitCode": 99, "reason": "x", "message": "y"}')
