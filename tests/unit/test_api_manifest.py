"""Manifests become jobs, or sentences with file, line, field, reason and hint."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contract_cases import VALID_SPECS, changed, valid_job
from finetune_api.manifest import ManifestInvalid, load_jobs, parse_job, parse_spec
from finetune_api.problems import problems_of

JOB = """\
apiVersion: finetune-operator.io/v1alpha1
kind: FineTuneJob
metadata:
  name: first
spec:
  task: TextClassification
  model:
    uri: file:///models/base
  data:
    train: {uri: file:///data/train.jsonl}
  strategy:
    full: {}
  output: {uri: file:///models/tuned}
"""
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


def problems(file: Path, content: str | bytes) -> list[str]:
    """What is wrong with a file, without its name."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ManifestInvalid) as refused:
        load_jobs(file)
    assert str(refused.value) == "\n".join(refused.value.problems)
    assert all(problem.startswith(f"{file}:") for problem in refused.value.problems)
    return [problem.removeprefix(f"{file}:").strip() for problem in refused.value.problems]


def names(file: Path, content: str) -> list[str]:
    file.write_text(content, encoding="utf-8")
    return [job.metadata.name for job in load_jobs(file)]


@pytest.mark.parametrize(
    "content", [JOB, JOB.replace("\n", "\r\n"), f"\ufeff{JOB}", f"---\n{JOB}...\n", f"# note\n{JOB}"]
)
def test_a_job_is_read(file: Path, content: str) -> None:
    assert names(file, content) == ["first"]


def test_json_is_read(file: Path) -> None:
    assert names(file, json.dumps(valid_job("lora"), indent="\t")) == ["job"]


def test_several_documents_are_read_and_other_kinds_passed_over(file: Path) -> None:
    assert names(file, "---\n".join([POD, JOB, "# nothing\n", JOB.replace("first", "second")])) == ["first", "second"]


def test_every_document_is_judged_at_its_own_lines(file: Path) -> None:
    lines = JOB.count("\n") + 1
    wrong = JOB.replace("file:///models/base", "base") + "  queueName: 5\n"
    assert problems(file, f"{JOB}---\n{wrong}") == [
        f'{lines + 8}: spec.model.uri: "base" must be a URI that starts with hf://, pvc://, s3://, file:// or '
        "https://, without spaces, '?' or '#'",
        f'{lines + 14}: spec.queueName: 5 is a number; write it as a string ("5")',
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "no FineTuneJob in this file (expected apiVersion: finetune-operator.io/v1alpha1 and kind: FineTuneJob)"),
        ("# only a comment\n", "no FineTuneJob in this file (expected"),
        ("---\n---\n", "no FineTuneJob in this file (expected"),
        (POD, "no FineTuneJob in this file (expected"),
        (b"\xff\xfe\x00", "cannot be read: not UTF-8 text"),
        ("- a\n- b\n", '1: ["a", "b"] should be an object'),
        ("just words\n", '1: "just words" should be an object'),
        ("a: [1,\n", "2: not valid YAML: expected the node content, but found '<stream end>'"),
        (f"{JOB}  task: TextClassification\n", "14: not valid YAML: the key 'task' is given twice"),
        (JOB.replace("  task", "\ttask"),
         "6: not valid YAML: found character '\\t' that cannot start any token; write spaces instead of the tab"),
        (f"{JOB}\x00", "14: not valid YAML: the character '\\x00' is not allowed"),
        ("[" * 1_000, "not valid YAML: it is nested too deeply"),
        (JOB.replace("v1alpha1", "v1"),
         '1: apiVersion: "finetune-operator.io/v1" is not allowed; use finetune-operator.io/v1alpha1'),
        (JOB.replace("FineTuneJob", "FinetuneJob"), '2: kind: "FinetuneJob" is not allowed; use FineTuneJob'),
        (JOB.replace("kind: FineTuneJob\n", ""), "1: kind: required, but absent"),
        (JOB.replace("apiVersion: finetune-operator.io/v1alpha1\n", ""), "1: apiVersion: required, but absent"),
    ],
)  # fmt: skip
def test_what_is_no_job_is_said(file: Path, content: str | bytes, expected: str) -> None:
    [problem] = problems(file, content)
    assert problem.startswith(expected)


def test_absent_file_and_directory_are_said(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ManifestInvalid) as refused:
            load_jobs(path)
        assert refused.value.problems == [f"{path}: cannot be read: {reason}"]


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("training: {learningrate: '1'}", "training.learningrate: unknown field (did you mean learningRate?)"),
        ("training:\n  batch_size: 3", "training.batch_size: unknown field (did you mean batchSize?)"),
        ("batchsize: 3", "batchsize: unknown field (did you mean spec.training.batchSize?)"),
        ("learning_rat: '1'", "learning_rat: unknown field (did you mean spec.training.learningRate?)"),
        ("patience: 3", "patience: unknown field (did you mean spec.evaluation.earlyStopping.patience?)"),
        ("evaluation: {patience: 3}",
         "evaluation.patience: unknown field (did you mean spec.evaluation.earlyStopping.patience?)"),
        ("evaluation: {retention: {uri: x}}", "evaluation.retention.data: required, but absent"),
        ("pod: {tolerations: [{key: a, opertor: Exists}]}",
         "pod.tolerations[0].opertor: unknown field (did you mean operator?)"),
        ("checkpoint: {zebra: 1}", "checkpoint.zebra: unknown field (known fields here: everySteps, keep)"),
        ("training: {learningRate: 2e-4}",
         'training.learningRate: 0.0002 is a number; write it as a string ("0.0002")'),
        ("training: {learningRate: high}",
         'training.learningRate: "high" must be a finite number as a quoted string, such as "0.1" or "2e-4"'),
        ("training: {learningRate: '-1'}", 'training.learningRate: "-1" must be a number > 0'),
        ("training: {epochs: 2.5}", "training.epochs: 2.5 should be a valid integer"),
        ("training: {epochs: '2'}", 'training.epochs: "2" should be a valid integer'),
        ("training: {epochs: yes}", "training.epochs: true should be a valid integer"),
        ("training: {epochs: 0}", "training.epochs: 0 should be greater than or equal to 1"),
        ("training: {epochs: 1, maxSteps: 1}", "training.maxSteps: give epochs or maxSteps, not both"),
        ("training: 5", "training: 5 should be an object"),
        ("queueName: Research", 'queueName: "Research" does not match ^[a-z0-9]'),
        ("queueName: ''", 'queueName: "" should have at least 1 character'),
        ("evaluation: {metric: f1}", "evaluation.metric: TextClassification is judged by accuracy, macroF1, loss"),
        ("evaluation: {metric: acuracy}", 'evaluation.metric: "acuracy" is not allowed; use accuracy or '),
        ("suspend: 'no'", 'suspend: "no" should be a valid boolean'),
        ("pod: {labels: {'a b': c}}", 'pod.labels.a b: "a b" does not match '),
        ("pod: {nodeSelector: {example.com/zone: 5}}",
         'pod.nodeSelector.example.com/zone: 5 is a number; write it as a string ("5")'),
        ("pod:\n  tolerations:\n  - key: a\n  - effect: NoSchedule", "pod.tolerations[1].key: required, but absent"),
        (f"pod: {{tolerations: [{'{key: a}, ' * 17}]}}", 'pod.tolerations: [{"key": "a"}, {"key": "a"}, '),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_line_and_a_hint(file: Path, addition: str, expected: str) -> None:
    found = problems(file, JOB + textwrap.indent(addition, "  ") + "\n")
    last_line = JOB.count("\n") + addition.count("\n") + 1
    assert any(problem.startswith(f"{last_line}: spec.{expected}") for problem in found), found


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("namespce: research", "namespce: unknown field (did you mean namespace?)"),
        ("lables: {}", "lables: unknown field (did you mean labels?)"),
        ("creationTimestamp: yesterday", 'creationTimestamp: "yesterday" must be a time such as 2026-01-31T12:00:00Z'),
        ("annotations: {a b: x}", 'annotations.a b: "a b" does not match '),
        (f"annotations: {{a: {'x' * 2**18}}}", 'annotations: {"a": "xxxxx'),
        ("ownerReferences: [{apiVersion: v1, kind: Pod, name: x}]", "ownerReferences[0].uid: required, but absent"),
    ],
)
def test_wrong_metadata_is_named_with_its_line_and_a_hint(file: Path, metadata: str, expected: str) -> None:
    [problem] = problems(file, JOB.replace("name: first", f"name: first\n  {metadata}"))
    assert problem.startswith(f"5: metadata.{expected}")


def test_too_many_bytes_of_annotations_are_counted(file: Path) -> None:
    [problem] = problems(file, JOB.replace("name: first", f"name: first\n  annotations: {{a: {'x' * 2**18}}}"))
    assert problem.endswith("... are 262145 bytes; all together may be 262144")


def test_a_generated_name_is_no_name(file: Path) -> None:
    assert problems(file, JOB.replace("name:", "generateName:")) == [
        "3: metadata.name: required, but absent (only `kubectl create` makes a name of generateName; without a cluster "
        "a run goes on under its name)"
    ]
    assert names(file, JOB.replace("name: first", "name: first\n  generateName: first-")) == ["first"]


def test_a_misspelt_value_gets_the_nearest_one(file: Path) -> None:
    [problem] = problems(file, JOB.replace("TextClassification", "textclasification"))
    assert problem.endswith("(did you mean TextClassification?)")


def test_dates_stay_words(file: Path) -> None:
    file.write_text(JOB.replace("first", "first\n  labels: {since: 2026-01-01}"), encoding="utf-8")
    assert load_jobs(file)[0].metadata.labels == {"since": "2026-01-01"}


@pytest.mark.parametrize("size", ["gpusPerNode: 2", "nodes: 2, gpusPerNode: 0"])
def test_relations_between_samples_are_refused_over_one_process(file: Path, size: str) -> None:
    content = JOB.replace("full: {}", "distillation: {teacher: {uri: 'file:///t'}, relation: {}, response: {}}")
    content = re.sub(r"output: .*", "output: {uri: 'pvc://models/tuned'}", content) + f"  resources: {{{size}}}\n"
    [problem] = problems(file, content)
    line = content.count("\n")
    assert problem.startswith(f"{line}: spec.resources: relations between samples (relation.distance, relation.angle)")
    assert problem.endswith("in one process: use 1 node and at most 1 GPU, or set both weights to 0")
    file.write_text(content.replace("relation: {}", "relation: {distance: '0', angle: '0', layers: '1'}"))
    [job] = load_jobs(file)
    assert not job.spec.strategy.compares_samples()


def test_status_is_not_looked_at(file: Path) -> None:
    assert names(file, f"{JOB}status: {{phase: Nonsense, bogus: 1}}\n") == ["first"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "training"), None),
        (("spec", "training"), {"batchSize": None, "learningRate": None}),
        (("spec", "pod"), {"nodeSelector": {"a": None}, "tolerations": None}),
        (("spec", "strategy"), {"full": {}, "adapter": None}),
        (("spec", "queueName"), None),
        (("metadata", "labels"), None),
    ],
)
def test_null_is_absent_as_it_is_to_the_api_server(path: tuple[str, ...], value: Any) -> None:
    assert parse_job(changed(valid_job(), path, value)).spec == parse_job(valid_job()).spec


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("spec", "task"), None, "spec.task"),
        (("spec", "bogus"), None, "spec.bogus"),
        (("spec",), None, "spec"),
        (("spec", "pod"), {"tolerations": [None]}, "spec.pod.tolerations[0]"),
    ],
)
def test_null_where_something_is_needed_is_an_error(path: tuple[str, ...], value: Any, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_job(changed(valid_job(), path, value))
    assert [problem.field for problem in problems_of(refused.value)] == [field]


def test_whole_floats_are_integers_and_others_are_not() -> None:
    assert parse_job(changed(valid_job(), ("spec", "training"), {"epochs": 3.0})).spec.training.epochs == 3
    with pytest.raises(ValidationError):
        parse_job(changed(valid_job(), ("spec", "training"), {"epochs": 3.5}))


def test_field_names_are_those_of_the_manifest_only() -> None:
    with pytest.raises(ValidationError):
        parse_job(changed(valid_job(), ("spec", "training"), {"batch_size": 3}))


@pytest.mark.parametrize("name", VALID_SPECS)
def test_a_spec_alone_is_judged_as_within_its_job(name: str) -> None:
    manifest = valid_job(name)
    assert parse_spec(manifest["spec"]) == parse_job(manifest).spec


def test_problems_of_a_spec_alone_start_with_spec() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_spec({**valid_job()["spec"], "batchsize": 3, "training": None, "queueName": 5})
    assert [str(problem) for problem in problems_of(refused.value)] == [
        'spec.queueName: 5 is a number; write it as a string ("5")',
        "spec.batchsize: unknown field (did you mean spec.training.batchSize?)",
    ]


@pytest.mark.parametrize("name", VALID_SPECS)
def test_a_job_goes_out_as_it_came_in(name: str) -> None:
    job = parse_job(valid_job(name))
    assert parse_job(job.to_json()) == job


def in_list(*documents: str, kind: str = "List") -> str:
    items = "".join("- " + textwrap.indent(document, "  ")[2:] for document in documents)
    return f"apiVersion: v1\nkind: {kind}\nitems:\n{items}metadata: {{resourceVersion: ''}}\n"


@pytest.mark.parametrize("kind", ["List", "FineTuneJobList"])
def test_the_jobs_of_a_list_are_read(file: Path, kind: str) -> None:
    second = JOB.replace("first", "second")
    assert names(file, in_list(JOB, POD, second, kind=kind) + "---\n" + JOB) == ["first", "second", "first"]


def test_a_problem_in_a_list_has_its_line(file: Path) -> None:
    wrong = JOB.replace("strategy:", "strategie:")
    content = in_list(POD, JOB, wrong)
    line = content.splitlines().index("    strategie:") + 1
    assert f"{line}: spec.strategie: unknown field (did you mean strategy?)" in problems(file, content)


def test_a_list_without_a_job_is_told(file: Path) -> None:
    assert "no FineTuneJob in this file" in problems(file, in_list(POD))[0]
    assert "no FineTuneJob in this file" in problems(file, "kind: List\nitems: []\n")[0]
