"""The operator's pods: their image, their rights on the node, and where they go."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import Chart, Object, container, environment, one
from chart.value_sets import DIGEST, VALUE_SETS, render


def test_pods_are_restricted(rendered: list[Object]) -> None:
    pod = one(rendered, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(rendered)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {kind for volume in pod.get("volumes", []) for kind in volume} <= {"name", "secret"}


USER_FIELDS = ("runAsUser", "runAsGroup", "fsGroup")


def test_the_user_is_the_images_or_the_clusters_choice(chart: Chart) -> None:
    def users(values: str) -> list[Any]:
        pod = one(render(chart, values), "Deployment")["spec"]["template"]["spec"]
        return [where.get(field) for where in (pod["securityContext"], *pod["containers"]) for field in USER_FIELDS]

    assert users("defaults")[:3] == [65532] * 3
    assert set(users("openshift")) == {None}


@pytest.mark.parametrize(
    ("values", "operator", "trainer"),
    [
        ("defaults", "localhost/finetune-operator:0.1.0", "localhost/finetune-trainer:0.1.0"),
        ("tags", "localhost/finetune-operator:1.2.3", "localhost/finetune-trainer:4.5.6"),
        (
            "digests",
            f"registry.example.com/ml/finetune-operator@{DIGEST}",
            f"registry.example.com:5000/trainer@{DIGEST}",
        ),
    ],
)
def test_images(chart: Chart, values: str, operator: str, trainer: str) -> None:
    found = render(chart, values)
    assert container(found)["image"] == operator
    assert environment(found)["FINETUNE_TRAINER_IMAGE"] == trainer


def test_resources_that_are_empty_are_not_asked_for(chart: Chart) -> None:
    assert container(render(chart, "placed"))["resources"] == {"requests": {"memory": "1Gi"}, "limits": {"cpu": "2"}}
    assert "resources" not in container(render(chart, "unlimited"))


def test_pods_go_where_they_are_sent(chart: Chart) -> None:
    template = one(render(chart, "placed"), "Deployment")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"pool": "system"}
    assert template["spec"]["tolerations"] == [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}]
    assert template["spec"]["priorityClassName"] == "system-cluster-critical"
    assert template["metadata"]["labels"]["team"] == "platform"
    assert template["metadata"]["annotations"]["example.com/note"] == "kept"


def test_replicas_are_kept_apart_as_it_is_told(chart: Chart) -> None:
    pod = one(render(chart, "kept-apart"), "Deployment")["spec"]["template"]["spec"]
    assert pod["affinity"] == VALUE_SETS["kept-apart"]["affinity"]
    assert "affinity" not in one(chart.render(), "Deployment")["spec"]["template"]["spec"]


def test_the_replicas_of_an_upgrade_are_spread_among_themselves(rendered: list[Object]) -> None:
    """Counted with those before them, both may end on one node."""
    template = one(rendered, "Deployment")["spec"]["template"]
    [spread] = template["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert spread["matchLabelKeys"] == ["pod-template-hash"]
