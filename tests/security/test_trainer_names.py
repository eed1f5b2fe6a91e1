"""Hostile words in any string of a job: refused by the contract, or harmless in commands, names, paths and logs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract_cases import VALID_SPECS, changed, json_path, valid_job, values_in
from finetune_api.logs import OneLineFormatter
from finetune_api.run import Run, Termination
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.plan import names
from finetune_operator.plan.builders.job import build_job
from finetune_operator.plan.run import make_run as run_of
from plan_builders import SETTINGS
from trainer.conftest import unchecked_export  # noqa: F401 - its settings too: few threads, no hub
from trainer.runs import events, finish
from trainer.tiny import FULL, make_model, make_run, write_rows

HOSTILE = (
    "a" * 253, "../../etc/passwd", "..", "/etc/passwd", "a\nb: c", "a\r\nb", "\x1b[2J\x1b[31mred", "-rf", "--help",
    "$(id)", "`id`", "; rm -rf /", "| cat", "&& id", "'\"", "a b", "${HOME}", "$(HF_TOKEN)", "%s%n", "{0}", "{{ x }}",
    "\u202eabc", "\u2028x", "é", "😀", "\ufeff", "A\u0301", "null", "true", "!!python/object:os.system", "&a", "*a",
    "# x", "<script>", '{"event": "progress"}', "\0", "\x7f", "\uffff", "finetune-operator.io/job-name",
)  # fmt: skip
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
COMMAND = ["python", "-m", "finetune_trainer", "/etc/finetune/run.json"]
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) ")


def strings() -> list[tuple[str, tuple[str | int, ...]]]:
    """Every string of the spec, once, with a valid manifest that gives it."""
    found: dict[str, tuple[str, tuple[str | int, ...]]] = {}
    for name in VALID_SPECS:
        for path, node in values_in(valid_job(name)).items():
            if node.get("type") == "string" and "enum" not in node:
                found.setdefault(re.sub(r"\[\d+\]", "[]", json_path(path)), (name, path))
    assert len(found) > 40
    return list(found.values())


STRINGS = strings()
WORDS = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=300), st.sampled_from(HOSTILE).map(lambda word: f"x{word}")
)


def prefixed(word: str) -> Iterator[str]:
    """The word, and as a part of what each kind of string begins with."""
    yield word
    for start in (
        "hf://owner/",
        "hf://datasets/",
        "pvc://claim/",
        "pvc://",
        "file:///",
        "s3://bucket/",
        "https://host/",
    ):
        yield start + word


def check_pod(job: FineTuneJob, name: str = "job") -> None:
    """What is made of a job that was accepted: nothing of it is a command, and every name is one."""
    run = run_of("team-a", name, "0" * 8, job.spec)
    template = build_job(run, SETTINGS)["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert container["command"] == COMMAND
    assert "args" not in container
    assert "shell" not in json.dumps(container["env"])
    for label in template["metadata"]["labels"].values():
        assert LABEL_VALUE.fullmatch(label)
    for variable in container["env"]:
        assert ENVIRONMENT.fullmatch(variable["name"])
        # Kubernetes would put another variable in the place of $(NAME); no value is a user's.
        assert "$(" not in variable.get("value", "")
    for mount in container["volumeMounts"]:
        assert ".." not in mount["mountPath"].split("/")
        assert mount["mountPath"].isprintable()
        assert DNS_LABEL.fullmatch(mount["name"])
    assert build_job(run, SETTINGS)["metadata"]["name"] == name
    assert Run.model_validate_json(template["metadata"]["annotations"][names.RUN_ANNOTATION]) == run
    again = yaml.load(yaml.safe_dump(json.loads(json.dumps(template))), yaml.CSafeLoader)
    assert again == json.loads(json.dumps(template))


@pytest.mark.security(14)
@pytest.mark.parametrize(("name", "path"), STRINGS, ids=[json_path(path) for _, path in STRINGS])
def test_a_hostile_word_in_a_string_of_the_spec_is_refused_or_harmless(name: str, path: tuple[str | int, ...]) -> None:
    outcomes = {"refused": 0, "harmless": 0}
    for word in HOSTILE:
        for text in prefixed(word):
            try:
                job = FineTuneJob.model_validate(changed(valid_job(name), path, text))
            except ValidationError:
                outcomes["refused"] += 1
            else:
                check_pod(job)
                outcomes["harmless"] += 1
    assert outcomes["refused"] or json_path(path) == "spec.strategy.promptTuning.text"


@pytest.mark.security(14)
@settings(max_examples=300, deadline=None)
@given(where=st.sampled_from(STRINGS), word=WORDS)
def test_any_word_in_any_string_is_refused_or_harmless(where: tuple[str, tuple[str | int, ...]], word: str) -> None:
    name, path = where
    with contextlib.suppress(ValidationError):
        check_pod(FineTuneJob.model_validate(changed(valid_job(name), path, word)))


@pytest.mark.security(14)
@settings(max_examples=300, deadline=None)
@given(word=st.one_of(WORDS, st.from_regex(r"[a-z][-a-z0-9]{0,60}", fullmatch=True)))
def test_any_name_of_a_job_is_refused_or_a_name_of_every_child(word: str) -> None:
    try:
        job = FineTuneJob.model_validate(valid_job(job_name=word))
    except ValidationError:
        return
    assert DNS_LABEL.fullmatch(word)
    check_pod(job, word)


def hostile_run(directory: Path) -> Run:
    """A run whose labels, texts, columns and names all try to be more than a word."""
    forged = '\n2026-01-01 00:00:00,000 ERROR forged: all is lost\r\x1b[2J\u2028{"event": "forged"}'
    run = make_run(directory, make_model(directory / "model"), FULL, training={"maxSteps": 2})
    for name, count in (("train", 40), ("evaluation", 12)):
        rows = [
            {"text": f"{forged} {name} {number}", "label": f"{'ab'[number % 2]}{forged}"} for number in range(count)
        ]
        write_rows(directory / f"{name}.jsonl", [*rows, {"text": "", "label": forged}])
    content = json.loads(run.model_dump_json(by_alias=True, exclude_none=True))
    content |= {"name": f"job{forged}", "namespace": f"team{forged}"}
    content["spec"]["data"]["maxDroppedFraction"] = "1"
    return Run.model_validate_json(json.dumps(content))


def log_of(run: Run, directory: Path) -> tuple[int, str]:
    """Train in a process of its own; its exit code and all that it prints."""
    file = directory / "run.json"
    file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    return done.returncode, done.stdout.decode()


@pytest.mark.security(20)
def test_hostile_rows_and_labels_stay_one_record_of_the_log(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    code, log = log_of(run, tmp_path)
    assert code == 0, log
    lines = log.split("\n")[:-1]
    assert all(STAMP.match(line) for line in lines), log
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if STAMP.sub("", line).startswith("forged")]
    assert {event["event"] for event in events(run)} == {"note", "evaluation", "progress"}


@pytest.mark.security(20)
@pytest.mark.parametrize("what", ["file", "row", "label", "run"])
def test_a_hostile_error_is_one_line_everywhere(tmp_path: Path, what: str) -> None:
    run = hostile_run(tmp_path)
    forged = "\n2026-01-01 00:00:00,000 ERROR forged\x1b[2J"
    if what == "file":
        data = {"train": {"uri": "file://x\u2028forged\u202e.jsonl"}}
        spec = run.spec.model_validate(run.spec.to_json() | {"data": data})
        run = run.model_copy(update={"spec": spec})
    elif what == "row":
        (tmp_path / "train.jsonl").write_text('{"text": "\x1b[2J', encoding="utf-8")
    elif what == "label":
        write_rows(tmp_path / "evaluation.jsonl", [{"text": f"text {forged}", "label": f"other{forged}"}])
    else:
        run = run.model_copy(update={"volumes": {}, "work_dir": str(tmp_path / f"work{forged}")})
        (tmp_path / "train.jsonl").unlink()
    code, log = log_of(run, tmp_path)
    assert code
    assert all(STAMP.match(line) and line.isprintable() for line in log.split("\n")[:-1]), log
    last_word = Termination.model_validate_json(Path(run.work_dir, "termination.json").read_text())
    assert last_word.message.isprintable()
    assert last_word.hint.isprintable()


@pytest.mark.security(20)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=80), is_error=st.booleans())
def test_any_message_is_one_line_and_a_traceback_is_indented(text: str, is_error: bool) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(text)
    except ValueError:
        logger.error("%s", text, exc_info=is_error)
    first, *others = stream.getvalue().split("\n")[:-1]
    assert first.startswith("ERROR ")
    assert first.isprintable()
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert bool(others) == is_error


@pytest.mark.security(14)
@pytest.mark.usefixtures("unchecked_export")
def test_a_hostile_name_is_only_words_in_the_model_card(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    assert finish(run).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.load(card.split("---\n")[1], yaml.CSafeLoader)
    assert set(head) == {"library_name", "pipeline_tag", "tags"}
    assert not [line for line in card.splitlines() if line.startswith("2026-01-01")]
