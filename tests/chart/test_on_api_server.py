"""A real API server takes what the chart renders, and its policies judge as they should."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chart.documented import EXAMPLES
from chart.foreign_kinds import FOREIGN_KINDS, crd_name, foreign_crd
from chart.rendering import FOLDER, RELEASE, Chart, Object, environment, objects, of_kind, one
from chart.value_sets import VALUE_SETS
from contract_cases import VALID_SPECS, spec_fields, valid_job
from finetune_api.manifest import parse_job
from finetune_operator.host.settings import from_environment
from finetune_operator.plan.builders.pod import build_pod_template
from finetune_operator.plan.run import make_run
from testbed.apiserver import ApiServer
from testbed.client import eventually
from testbed.operator_process import install_crd

pytestmark = pytest.mark.integration

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
ALLOWED = {"models": "hf://allowed/name", "data": "hf://datasets/allowed/name", "outputs": "pvc://models/tuned"}
FOREIGN = {"models": "hf://foreign/name", "data": "hf://datasets/foreign/name", "outputs": "pvc://foreign/tuned"}
SOURCES = {"models": ["hf://allowed/"], "data": ["hf://datasets/allowed/"], "outputs": ["pvc://models/"]}


def kubectl(server: ApiServer, *arguments: str, stdin: list[Object] | None = None) -> str:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": stdin}) if stdin is not None else None
    done = server.kubectl(*arguments, stdin=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(api_server: ApiServer) -> Iterator[ApiServer]:
    """An API server with restricted namespaces and what other operators bring."""
    install_crd(api_server)
    namespaces = ["finetune-system", "team-a", "team-b"]
    made: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
        for name in namespaces
    ]
    for account in ("finetune-operator", "named", "given", "tuner", "finetune-operator-tuner", "default"):
        metadata = {"name": account, "namespace": "finetune-system"}
        made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    made += [foreign_crd(kind) for kind in FOREIGN_KINDS]
    kubectl(api_server, "apply", "--filename=-", stdin=made)
    for kind in FOREIGN_KINDS:
        eventually(lambda kind=kind: api_server.kubectl("get", crd_name(kind)).returncode == 0, kind)  # type: ignore[misc]
    yield api_server
    for kind in FOREIGN_KINDS:
        api_server.kubectl("delete", f"crd/{crd_name(kind)}", "--wait=false")
    api_server.kubectl("delete", "namespace", *namespaces, "--wait=false")


def days_ago(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


def pod_of(found: list[Object]) -> Object:
    """A pod as the Deployment will make it: admission judges pods, and only warns of templates."""
    template = copy.deepcopy(one(found, "Deployment")["spec"]["template"])
    template["metadata"] |= {"name": "judged", "namespace": "finetune-system"}
    return {"apiVersion": "v1", "kind": "Pod", **template}


@pytest.mark.security(22)
@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_object_is_accepted_without_a_warning(chart: Chart, server: ApiServer, values: str) -> None:
    found = chart.render(VALUE_SETS[values])
    said = kubectl(
        server,
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"),
        *("--warnings-as-errors", "--filename=-"),
        stdin=[*found, pod_of(found)],
    )
    assert len(said.splitlines()) == len(found) + 1


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--namespace=finetune-system", f"--filename={EXAMPLES / 'kind' / 'files.yaml'}"), 3),
        ((f"--kustomize={EXAMPLES / 'gitops' / 'finetune' / 'jobs'}",), 3),
    ],
    ids=["kind", "gitops"],
)
def test_the_examples_are_accepted_without_a_warning(server: ApiServer, options: tuple[str, ...], count: int) -> None:
    said = kubectl(
        server,
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"),
        *("--warnings-as-errors", *options),
    )
    assert len(said.splitlines()) == count


def test_a_pod_that_is_not_restricted_would_be_refused(chart: Chart, server: ApiServer) -> None:
    """That the namespace is what the other tests take it for."""
    pod = pod_of(chart.render())
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    done = server.kubectl("apply", "--dry-run=server", "--filename=-", stdin=json.dumps(pod))
    assert "violates PodSecurity" in done.stderr


@pytest.fixture
def nvidia_runtime(server: ApiServer) -> Iterator[None]:
    """Without it the API server refuses pods that name it."""
    made = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
    kubectl(server, "create", "--filename=-", stdin=[made])
    yield
    kubectl(server, "delete", "runtimeclass/nvidia")


@pytest.mark.security(1)
@pytest.mark.usefixtures("nvidia_runtime")
@pytest.mark.parametrize("values", ["defaults", "gpu-pools", "untolerated", "openshift"])
def test_training_pods_of_these_settings_are_accepted_and_restricted(
    chart: Chart, server: ApiServer, values: str
) -> None:
    settings = from_environment(environment(chart.render(VALUE_SETS[values]))).pod_settings()
    template = build_pod_template(make_run("team-a", "tuned", "u1", parse_job(valid_job()).spec), settings)
    template["metadata"] |= {"name": "tuned", "namespace": "team-a"}
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    # Nothing makes it here, where no controllers are.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "team-a"}}
    kubectl(server, "apply", "--filename=-", stdin=[account])
    options = ("--dry-run=server", "--validate=strict", "--warnings-as-errors", "--output=json")
    accepted = json.loads(kubectl(server, "create", *options, "--filename=-", stdin=[pod]))
    assert accepted["spec"].get("runtimeClassName", "") == ("nvidia" if values == "gpu-pools" else "")
    keys = [each["key"] for each in accepted["spec"].get("tolerations", []) if "node.kubernetes.io" not in each["key"]]
    assert keys == {"gpu-pools": ["sku", "amd.com/gpu"], "untolerated": []}.get(values, ["nvidia.com/gpu"])
    assert ("runAsUser" in accepted["spec"]["securityContext"]) is (values != "openshift")


@pytest.fixture(scope="module")
def policies(chart: Chart, server: ApiServer) -> Iterator[ApiServer]:
    """The API server while both policies judge the namespace team-a."""
    labels = {"kubernetes.io/metadata.name": "team-a"}
    images = {"enabled": True, "allowed": ["registry.example.com/trainer:2"]}
    policy = {"sources": {"enabled": True, **SOURCES}, "images": images, "namespaceLabels": labels}
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    made = [each for each in chart.render({"admissionPolicy": policy}) if each["kind"] in kinds]
    assert len(made) == 6
    kubectl(server, "apply", "--warnings-as-errors", "--filename=-", stdin=made)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "team-a"}}
    kubectl(server, "apply", "--filename=-", stdin=[account])
    eventually(lambda: judged(server, sources_of("minimal", {"models": FOREIGN["models"]})), "the policy acts", 60)
    eventually(lambda: judged(server, training_pod("elsewhere.example.com/other:1")), "the policy of images acts", 60)
    yield server
    kubectl(server, "delete", "--filename=-", stdin=made)


def judged(server: ApiServer, manifest: Object, namespace: str = "team-a") -> str:
    """Why it is refused; empty when it is accepted."""
    done = server.kubectl(
        *("create", f"--namespace={namespace}", "--dry-run=server", "--filename=-"), stdin=json.dumps(manifest)
    )
    return done.stderr if done.returncode else ""


def kind_of(path: tuple[str | int, ...]) -> str:
    """What a URI at that place of a spec is for."""
    if path[0] == "output":
        return "outputs"
    return "models" if {"model", "teacher", "stackOn"} & set(path) else "data"


def uris(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a spec has URIs."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key == "uri":
            yield (*path, key)
        yield from uris(inner, (*path, key))


def with_uris(name: str, uri: Callable[[tuple[str | int, ...]], str]) -> Object:
    manifest: Object = copy.deepcopy(valid_job(name))
    manifest["metadata"].pop("namespace", None)
    for path in uris(manifest["spec"]):
        target = manifest["spec"]
        for key in path[:-1]:
            target = target[key]
        target["uri"] = uri(path)
    return manifest


def sources_of(name: str, given: dict[str, str]) -> Object:
    """A valid job whose URIs of some kinds are given, and those of the others allowed."""
    return with_uris(name, lambda path: {**ALLOWED, **given}[kind_of(path)])


ALL_URIS = {name: list(uris(valid_job(name)["spec"])) for name in VALID_SPECS}


def test_the_specs_have_every_uri() -> None:
    seen = {
        ".".join("[]" if isinstance(key, int) else str(key) for key in path)
        for paths in ALL_URIS.values()
        for path in paths
    }
    wanted = {
        field.replace("[]", ".[]").removeprefix("spec.").lstrip(".")
        for field in spec_fields()
        if field.endswith(".uri")
    }
    assert seen == wanted
    assert len(seen) >= 9


@pytest.mark.security(23)
@pytest.mark.parametrize("name", VALID_SPECS)
def test_what_is_allowed_passes_and_each_foreign_uri_is_refused_by_name(policies: ApiServer, name: str) -> None:
    assert judged(policies, sources_of(name, {})) == ""
    for place in ALL_URIS[name]:
        kind = kind_of(place)
        manifest = with_uris(name, lambda path, place=place: (FOREIGN if path == place else ALLOWED)[kind_of(path)])
        said = judged(policies, manifest)
        assert f"the administrator allows {kind} from {', '.join(SOURCES[kind])} only; not from" in said, place
        assert FOREIGN[kind] in said
        assert judged(policies, manifest, "team-b") == ""


def test_a_name_that_only_begins_alike_is_refused(policies: ApiServer) -> None:
    assert "hf://allowed-not/name" in judged(policies, sources_of("minimal", {"models": "hf://allowed-not/name"}))


@pytest.mark.parametrize(
    ("change", "days", "is_kept"),
    [
        pytest.param({}, 100, True, id="new"),
        pytest.param({"issued": days_ago(60)}, 100, True, id="two thirds not over"),
        pytest.param({"issued": days_ago(70)}, 100, False, id="two thirds over"),
        pytest.param({"issued": days_ago(700)}, 100, False, id="expired"),
        pytest.param({"days": "3650"}, 100, False, id="other days"),
        pytest.param({"names": "DNS:elsewhere"}, 100, False, id="other names"),
        pytest.param({"issued": None, "days": None}, 3650, True, id="without notes"),
        pytest.param({"issued": None, "days": None}, 100, False, id="without notes, and the days are not the default"),
    ],
)
def test_an_upgrade_renews_a_certificate_of_which_less_than_a_third_is_left(
    chart: Chart, server: ApiServer, change: dict[str, str | None], days: int, is_kept: bool
) -> None:
    secret = one(chart.render({"tls": {"validityDays": days}}, namespace="default"), "Secret")
    notes = {f"finetune-operator.io/{name}": value for name, value in change.items()}
    merged = {**secret["metadata"]["annotations"], **notes}
    secret["metadata"]["annotations"] = {name: value for name, value in merged.items() if value is not None}
    kubectl(server, "create", "--filename=-", stdin=[secret])
    try:
        options = ("--namespace=default", "--dry-run=server", f"--set=tls.validityDays={days}")
        text = chart.run("template", RELEASE, str(FOLDER), *options, kubeconfig=server.kubeconfig)
    finally:
        server.kubectl("delete", "secret", secret["metadata"]["name"], "--namespace=default")
    upgraded = one(objects(text), "Secret")
    assert (upgraded["data"] == secret["data"]) is is_kept
    issued = datetime.fromisoformat(upgraded["metadata"]["annotations"]["finetune-operator.io/issued"])
    told = change.get("issued")
    assert abs(issued - (datetime.fromisoformat(told) if told and is_kept else datetime.now(UTC))) < timedelta(
        minutes=5
    )
    assert upgraded["metadata"]["annotations"]["finetune-operator.io/days"] == str(days)


def training_pod(image: str, label: str = "finetune-operator.io/job-name") -> Object:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "judged", "labels": {label: "tuned"}},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "trainer", "image": image, "securityContext": security}],
        },
    }


@pytest.mark.security(23)
def test_training_pods_run_allowed_images_only(policies: ApiServer) -> None:
    for image in ("localhost/finetune-trainer:0.1.0", "registry.example.com/trainer:2"):
        assert judged(policies, training_pod(image)) == ""
    assert "may not run elsewhere.example.com/other:1" in judged(
        policies, training_pod("elsewhere.example.com/other:1")
    )
    assert judged(policies, training_pod("elsewhere.example.com/other:1", "app")) == ""


def test_policies_are_off_by_default(chart: Chart) -> None:
    assert not of_kind(chart.render(), "ValidatingAdmissionPolicy")
