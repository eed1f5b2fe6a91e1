"""The committed CRD on a real API server: it judges as the models do, fills in their defaults and prunes nothing."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from contract_cases import VALID_SPECS, Manifest, cases, changed, spec_fields, valid_job
from finetune_api.base import models_in
from finetune_api.documents import read_documents
from finetune_api.manifest import parse_job
from finetune_api.problems import problems_of
from finetune_api.v1alpha1 import GROUP, KIND, PLURAL, VERSION, FineTuneJobSpec
from finetune_api.v1alpha1.status import FineTuneJobStatus
from status_samples import full_status
from testbed.apiserver import ApiServer
from testbed.operator_process import install_crd

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

CRD_FILE = Path(__file__).resolve().parents[2] / "manifests" / "crds" / "finetunejobs.yaml"
SAMPLES = CRD_FILE.parents[1] / "samples"
CRD_NAME = f"{PLURAL}.{GROUP}"
JOBS_URL = f"/apis/{GROUP}/{VERSION}/namespaces/default/{PLURAL}"
JUDGE_URL = f"{JOBS_URL}?dryRun=All&fieldValidation=Strict"  # kubectl asks for strict validation too
CASES = cases()


class Client:
    """The API server's HTTP API over one connection."""

    def __init__(self, server: ApiServer, connection: http.client.HTTPSConnection) -> None:
        self.server = server
        self._connection = connection

    def send(self, method: str, url: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Send a request; returns status and answer."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self.server.token}", "Content-Type": kind}
        self._connection.request(method, url, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def create(self, manifest: Manifest) -> dict[str, Any]:
        """Create a job that must be accepted."""
        status, answer = self.send("POST", JOBS_URL, manifest)
        assert status == http.HTTPStatus.CREATED, answer
        return answer


@pytest.fixture(scope="module")
def client(api_server: ApiServer) -> Iterator[Client]:
    """A client of the API server while it has the committed CRD."""
    install_crd(api_server)
    context = ssl.create_default_context(cafile=api_server.ca_file)
    address = api_server.url.removeprefix("https://")
    with closing(http.client.HTTPSConnection(address, timeout=30, context=context)) as connection:
        yield Client(api_server, connection)
        # The CRD stays: deleting one takes a while, and other tests of this session may want it too.
        api_server.kubectl("delete", PLURAL, "--all", "--namespace=default")


@pytest.fixture(scope="module")
def verdicts(client: Client) -> dict[str, tuple[int, str]]:
    """What the API server says to every case: status and message."""
    answers = {case.name: client.send("POST", JUDGE_URL, case.manifest) for case in CASES}
    return {name: (status, str(answer.get("message", ""))) for name, (status, answer) in answers.items()}


@pytest.mark.security(23)
def test_crd_is_established_and_structural(client: Client) -> None:
    _, crd = client.send("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}")
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert "NonStructuralSchema" not in conditions
    assert crd["status"]["storedVersions"] == [VERSION]


def test_api_server_and_models_agree_on_every_case(verdicts: dict[str, tuple[int, str]]) -> None:
    """The decisive one: a manifest passes `finetune validate` exactly when it passes `kubectl apply`."""
    disagreements = {
        case.name: {"server": verdicts[case.name], "models": problems_by_models(case.manifest)}
        for case in CASES
        if (verdicts[case.name][0] == http.HTTPStatus.CREATED) == bool(problems_by_models(case.manifest))
    }
    assert not disagreements


def problems_by_models(manifest: Manifest) -> list[str]:
    try:
        parse_job(manifest)
    except ValidationError as error:
        return [str(problem) for problem in problems_of(error)]
    return []


@pytest.mark.security(24)
def test_every_wrong_manifest_is_refused_with_its_field_named(verdicts: dict[str, tuple[int, str]]) -> None:
    wrong = [case for case in CASES if case.refused]
    assert len(wrong) > 500
    for case in wrong:
        status, message = verdicts[case.name]
        assert status in (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNPROCESSABLE_ENTITY), case.name
        assert case.field in message, case.name


def test_every_field_of_the_spec_was_given_a_wrong_value() -> None:
    wrong = {re.sub(r"\[\d+\]", "[]", case.field) for case in CASES if case.refused}
    assert set(spec_fields()) <= wrong


def test_cases_without_a_verdict_of_their_own_go_both_ways(verdicts: dict[str, tuple[int, str]]) -> None:
    seen = [verdicts[case.name][0] == http.HTTPStatus.CREATED for case in CASES if case.refused is None]
    assert min(seen.count(True), seen.count(False)) > 100


def test_every_rule_was_broken_by_some_case(verdicts: dict[str, tuple[int, str]]) -> None:
    [version] = yaml.safe_load(CRD_FILE.read_text())["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    said = "\n".join(message for _, message in verdicts.values())
    unbroken = {message for message, rule in rules_in(spec) if "oldSelf" not in rule and message not in said}
    assert not unbroken


def rules_in(schema: Any) -> Iterator[tuple[str, str]]:
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", ()):
            yield rule["message"], rule["rule"]
        for part in schema.values():
            yield from rules_in(part)


@pytest.mark.parametrize("name", VALID_SPECS)
def test_valid_manifest_is_accepted_with_the_models_defaults(client: Client, name: str) -> None:
    manifest = valid_job(name)
    status, answer = client.send("POST", JUDGE_URL, manifest)
    assert status == http.HTTPStatus.CREATED, answer
    assert answer["spec"] == filled_in(manifest["spec"], parse_job(manifest).spec.to_json())
    assert parse_job(answer).spec == parse_job(manifest).spec


def filled_in(given: Any, whole: Any) -> Any:
    """What is given, with what a whole has besides; a list that is given stays as it is."""
    if isinstance(given, dict) and isinstance(whole, dict):
        return {name: filled_in(given[name], part) if name in given else part for name, part in whole.items()}
    return given if isinstance(given, list) else whole


def test_every_default_is_filled_in_for_some_valid_manifest() -> None:
    """What the test above compares, so that it cannot miss a default."""
    filled: set[str] = set()
    for manifest in map(valid_job, VALID_SPECS):
        filled |= set(paths_in(parse_job(manifest).spec.to_json())) - set(paths_in(manifest["spec"]))
    assert set(fields_with_default(FineTuneJobSpec, "")) <= filled


def fields_with_default(model: Any, path: str) -> Iterator[str]:
    for field in model.model_fields.values():
        below = f"{path}.{field.alias}"
        if not field.is_required() and (field.default_factory is not None or field.default is not None):
            yield below
        for nested in models_in(field.annotation):
            yield from fields_with_default(nested, below)


def paths_in(value: Any, path: str = "") -> Iterator[str]:
    """The paths of every value, without the indices of lists."""
    if path:
        yield path
    for name, part in value.items() if isinstance(value, dict) else ():
        yield from paths_in(part, f"{path}.{name}")
    for item in value if isinstance(value, list) else ():
        yield from paths_in(item, path)


def test_what_is_applied_again_is_unchanged(client: Client, tmp_path: Path) -> None:
    """Or GitOps tools see a difference for ever: a field that is filled in inside a list is one."""
    bare = {"key": "spot"}
    for number, name in enumerate(VALID_SPECS):
        manifest = valid_job(name, job_name=f"again-{number}")
        manifest["spec"].setdefault("pod", {}).setdefault("tolerations", []).append(bare)
        (tmp_path / f"{number}.json").write_text(json.dumps(manifest))
    folders = [f"--filename={folder}" for folder in (tmp_path, SAMPLES)]
    for said in ("created", "unchanged"):
        done = client.server.kubectl("apply", "--namespace=default", *folders)
        answers = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
        assert len(answers) == len(VALID_SPECS) + len(list(SAMPLES.glob("*.yaml"))), done.stderr
        assert set(answers.values()) == {said}, answers
    client.server.kubectl("delete", PLURAL, "--all", "--namespace=default")


@pytest.mark.parametrize(
    ("field", "path", "value"),
    [
        ("task", ("task",), "TextGeneration"),
        ("model", ("model", "uri"), "file:///other"),
        ("data", ("data", "deduplicate"), False),
        ("strategy", ("strategy", "full", "frozenLayers"), 1),
        ("output", ("output", "uri"), "file:///other"),
        ("training", ("training", "seed"), 1),
        ("evaluation", ("evaluation", "batchSize"), 1),
        ("checkpoint", ("checkpoint", "keep"), 1),
    ],
)
def test_what_decides_the_result_cannot_be_changed(
    client: Client, field: str, path: tuple[str, ...], value: Any
) -> None:
    job = client.create(valid_job(job_name=f"fixed-{field}"))
    status, answer = client.send("PUT", f"{JOBS_URL}/fixed-{field}", changed(job, ("spec", *path), value))
    assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY, answer
    assert f"spec.{field}: Invalid value" in answer["message"]
    assert f"{field} cannot be changed; create a new job" in answer["message"]


def test_what_does_not_decide_the_result_can_be_changed(client: Client) -> None:
    # On a volume, as jobs of several nodes must be.
    job = client.create(changed(valid_job(job_name="movable"), ("spec", "output", "uri"), "pvc://models/tuned"))
    everything = valid_job("everything-of-full")["spec"]
    movable = ("resources", "pod", "queueName", "suspend", "backoffLimit", "activeDeadlineSeconds")
    new = {name: everything[name] for name in (*movable, "ttlSecondsAfterFinished")}
    status, answer = client.send("PUT", f"{JOBS_URL}/movable", {**job, "spec": {**job["spec"], **new}})
    assert status == http.HTTPStatus.OK, answer
    assert {name: answer["spec"][name] for name in new} == new


FIXED_WHILE_RUNNING = {
    "resources": {"memory": "32Gi"},
    "pod": {"labels": {"team": "research"}},
    "queueName": "research",
}
FIXED_AT_THE_END = {**FIXED_WHILE_RUNNING, "backoffLimit": 9, "activeDeadlineSeconds": 9}


def at(client: Client, name: str, status: dict[str, Any]) -> str:
    """A new job with that status; returns its URL."""
    client.create(valid_job(job_name=name))
    url = f"{JOBS_URL}/{name}"
    code, answer = client.send("PATCH", f"{url}/status", {"status": status})
    assert code == http.HTTPStatus.OK, answer
    return url


@pytest.mark.parametrize("field", FIXED_WHILE_RUNNING)
def test_what_pods_are_made_with_can_be_changed_while_none_runs_and_with_a_suspension(
    client: Client, field: str
) -> None:
    url = at(client, f"runs-{field.lower()}", {"phase": "Running"})
    change = {field: FIXED_WHILE_RUNNING[field]}
    status, answer = client.send("PATCH", url, {"spec": change})
    assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY, answer
    assert f"spec.{field}: Invalid value" in answer["message"]
    assert f"{field} cannot be changed while the job runs: set suspend to true with it" in answer["message"]
    assert client.send("PATCH", url, {"spec": {"backoffLimit": 9}})[0] == http.HTTPStatus.OK
    assert client.send("PATCH", url, {"spec": {**change, "suspend": True}})[0] == http.HTTPStatus.OK
    assert client.send("PATCH", url, {"spec": {field: None, "suspend": False}})[0] == http.HTTPStatus.OK
    for phase in ("Pending", "Queued", "Suspended"):
        url = at(client, f"{phase.lower()}-{field.lower()}", {"phase": phase})
        assert client.send("PATCH", url, {"spec": change})[0] == http.HTTPStatus.OK


@pytest.mark.parametrize("field", FIXED_AT_THE_END)
def test_what_has_no_effect_any_more_cannot_be_changed(client: Client, field: str) -> None:
    change = {"spec": {field: FIXED_AT_THE_END[field], "suspend": True}}
    for phase in ("Complete", "Failed"):
        url = at(client, f"{phase.lower()}-{field.lower()}", {"phase": phase})
        status, answer = client.send("PATCH", url, change)
        assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY, answer
        assert f"spec.{field}: Invalid value" in answer["message"]
        assert f"{field} cannot be changed any more, because the job has ended; create a new job" in answer["message"]
        other = {"spec": {"suspend": True, "ttlSecondsAfterFinished": 9}}
        assert client.send("PATCH", url, other)[0] == http.HTTPStatus.OK


def test_job_that_was_refused_for_its_spec_can_be_mended(client: Client) -> None:
    moment = "2026-01-01T12:00:00Z"
    failed = {"type": "Failed", "status": "True", "reason": "SpecInvalid", "message": "", "lastTransitionTime": moment}
    url = at(client, "refused", {"phase": "Failed", "conditions": [failed]})
    assert client.send("PATCH", url, {"spec": FIXED_AT_THE_END})[0] == http.HTTPStatus.OK
    url = at(client, "refused-by-its-trainer", {"phase": "Failed", "conditions": [failed], "startTime": moment})
    status, answer = client.send("PATCH", url, {"spec": FIXED_AT_THE_END})
    assert status == http.HTTPStatus.UNPROCESSABLE_ENTITY
    for field in FIXED_AT_THE_END:
        assert f"{field} cannot be changed any more, because the job has ended; create a new job" in answer["message"]


def test_full_status_survives_the_round_trip(client: Client) -> None:
    job = client.create(valid_job(job_name="observed"))
    status = full_status().to_json()
    code, _ = client.send("PUT", f"{JOBS_URL}/observed/status?fieldValidation=Strict", {**job, "status": status})
    assert code == http.HTTPStatus.OK
    _, stored = client.send("GET", f"{JOBS_URL}/observed")
    assert stored["status"] == status
    assert FineTuneJobStatus.model_validate_json(json.dumps(stored["status"])) == full_status()
    assert stored["metadata"]["generation"] == 1


def test_status_is_written_through_its_subresource_only(client: Client) -> None:
    job = client.create({**valid_job(job_name="two-writers"), "status": {"phase": "Complete"}})
    assert "status" not in job
    url = f"{JOBS_URL}/two-writers"
    client.send("PATCH", url, {"status": {"phase": "Complete"}})
    _, answer = client.send("PATCH", f"{url}/status", {"spec": {"suspend": True}, "status": {"phase": "Running"}})
    assert answer["status"]["phase"] == "Running"
    assert answer["spec"]["suspend"] is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phase", "Paused"),
        ("restarts", -1),
        ("progress", {"step": 1, "totalSteps": 2, "percent": 101}),
        ("progress", {"step": 1, "totalSteps": 2, "percent": 50, "loss": 0.5}),
        ("progress", {"step": 1, "totalSteps": 2, "percent": 50, "loss": "NaN"}),
        ("progress", {"step": 1, "totalSteps": 2, "percent": 50, "loss": "1e999"}),
        ("progress", {"step": 1, "totalSteps": 2, "percent": 50, "evaluation": {"": "1.0"}}),
        ("startTime", "yesterday"),
    ],
)
def test_wrong_status_is_refused_by_name(client: Client, field: str, value: Any) -> None:
    name = "wrong-status"
    client.send("POST", JOBS_URL, valid_job(job_name=name))
    code, answer = client.send("PATCH", f"{JOBS_URL}/{name}/status?dryRun=All", {"status": {field: value}})
    assert code == http.HTTPStatus.UNPROCESSABLE_ENTITY
    assert f"status.{field}" in answer["message"]
    with pytest.raises(ValidationError):
        FineTuneJobStatus.model_validate_json(json.dumps({field: value}), strict=True)


def test_kubectl_shows_the_columns_under_the_short_name(client: Client) -> None:
    job = client.create(valid_job(job_name="shown"))
    client.send("PUT", f"{JOBS_URL}/shown/status", {**job, "status": full_status().to_json()})
    narrow = table(client.server.kubectl("get", "ftj", "shown").stdout)
    assert list(narrow) == ["NAME", "PHASE", "STRATEGY", "PROGRESS", "LOSS", "ETA", "AGE"]
    wide = table(client.server.kubectl("get", "ftj", "shown", "-o", "wide").stdout)
    assert list(wide) == [*narrow, "TASK", "MODEL", "OUTPUT"]
    age = wide.pop("AGE")
    assert age.endswith("s")
    assert list(wide.values()) == [
        "shown", "Running", "Bottleneck", "50", "0.25", "60",
        "TextClassification", "file:///models/base", "file:///models/tuned",
    ]  # fmt: skip


def table(text: str) -> dict[str, str]:
    header, row = (line.split() for line in text.splitlines())
    return dict(zip(header, row, strict=True))


def test_kubectl_explains_a_field_in_our_words(client: Client) -> None:
    explained = client.server.kubectl("explain", "ftj.spec.training.learningRate")
    assert "Peak learning rate." in explained.stdout, explained.stderr


def test_kubectl_apply_names_the_wrong_field_and_the_reason(client: Client) -> None:
    wrong = changed(valid_job(), ("spec", "training"), {"learningRate": "-1", "epoch": 3})
    applied = client.server.kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    assert applied.returncode != 0
    assert 'unknown field "spec.training.epoch"' in applied.stderr
    del wrong["spec"]["training"]["epoch"]
    applied = client.server.kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    # Before Kubernetes 1.35 the kind of the value stands there, "string".
    assert re.search(r'spec\.training\.learningRate: Invalid value: "[^"]+": must be a number > 0', applied.stderr)


SCALARS = (
    "1", "+1", "-1", "1.0", "3.0", "1.5", "2e-4", "2E4", "1e3", "1.e3", ".5", "5.", "-.5", "+.5", ".5e1", "1_000",
    "1_0.5", "017", "08", "0o17", "0x1F", "0b11", "-0x1F", "0b_", "0x_", "0x", "1e", "_1", "1_", "1:30", "1:30.5",
    "2020-01-01", "2020-01-01T00:00:00Z", "yes", "Yes", "y", "Y", "n", "no", "on", "off", "true", "True", "TRUE",
    "tRue", "=", "0", "-0", "00", "~", "null", "Null", "NULL", "1e400", "0.0", "1__0", "1e+3", "1.0e+3", "0b2", "0o8",
    "12e4567", "1234567e1", "1.5_0", "1,000", "1e21", "0.1e-6", "0.00001", "", "'yes'", '"1"', "!!str 5", "!!int '5'",
    "!!float 5", "{yes: 1, off: 2, 3: 4}",
    "a b\t# c", "a b\t \t", "\ta", "a\tb c", "{a: 1,\tb:\t2\t}\t", "'\ta\t'\t# c", "!!str 5\t",
    "0x7FFFFFFFFFFFFFFF", "0x10000000000000000", "-0x8000000000000000", "-0x8000000000000001", "9" * 20, "-" + "9" * 20,
    "0" + "7" * 30, "0b" + "1" * 70, "9" * 400,
    '"\\u00e9\\U0001f600"', "é😀",
)  # fmt: skip


def test_yaml_is_read_as_kubectl_reads_it(client: Client) -> None:
    lines = [f"  k{number}: {word}" for number, word in enumerate(SCALARS)]
    text = "\n".join([f"apiVersion: {GROUP}/{VERSION}", f"kind: {KIND}", "metadata: {name: a}", "spec:", *lines])
    read = client.server.kubectl(
        "create", "--dry-run=client", "--validate=false", "--output=json", "-f", "-", stdin=text
    )
    assert read.returncode == 0, read.stderr
    [document] = read_documents(text)
    ours = json.loads(json.dumps(document.content["spec"]))
    theirs = json.loads(read.stdout)["spec"]
    assert len(theirs) == len(SCALARS)
    read_otherwise = [word for n, word in enumerate(SCALARS) if not same(ours[f"k{n}"], theirs[f"k{n}"])]
    assert not read_otherwise


def same(ours: Any, theirs: Any) -> bool:
    """Equal, where Python's True is not 1."""
    return bool(ours == theirs) and isinstance(ours, bool) == isinstance(theirs, bool)
