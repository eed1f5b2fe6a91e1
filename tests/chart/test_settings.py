"""The operator's settings as the chart gives them."""

from __future__ import annotations

from chart.rendering import Chart, Object, environment, one
from chart.value_sets import VALUE_SETS, render
from finetune_operator.host.settings import OperatorSettings, from_environment


def test_the_operator_takes_every_environment(rendered: list[Object]) -> None:
    settings = from_environment(environment(rendered))
    assert settings.trainer_image
    assert settings.identity == "pod-1"
    assert settings.pod_ip == "10.0.0.7"


def test_every_setting_can_be_given(chart: Chart) -> None:
    given = {name for values in VALUE_SETS.values() for name in environment(chart.render(values))}
    assert given == {f"FINETUNE_{name.upper()}" for name in OperatorSettings.model_fields}


def test_settings_reach_the_operator(chart: Chart) -> None:
    settings = from_environment(environment(render(chart, "settings")))
    assert (settings.workers, settings.resync_seconds, settings.lease_seconds) == (4, 60.5, 30)
    assert (settings.http_port, settings.metrics_port) == (9090, 9443)
    assert from_environment(environment(render(chart, "one-namespace"))).watch_namespace == "team-a"
    assert from_environment(environment(render(chart, "tags"))).image_pull_policy == "Never"
    assert from_environment(environment(render(chart, "large-models"))).ephemeral_storage == "500Gi"
    assert from_environment(environment(render(chart, "openshift"))).fixed_user is False
    pools = from_environment(environment(render(chart, "gpu-pools")))
    assert pools.gpu_runtime_class_name == "nvidia"
    assert [each.key for each in pools.gpu_tolerations] == ["sku", "amd.com/gpu"]
    assert from_environment(environment(render(chart, "untolerated"))).gpu_tolerations == ()


def test_defaults_are_the_operators_own(chart: Chart) -> None:
    ours = from_environment(environment(render(chart, "plain")))
    given_by_the_pod = {"trainer_image": ours.trainer_image, "identity": "pod-1", "pod_ip": "10.0.0.7"}
    assert ours == OperatorSettings(**given_by_the_pod)


def test_no_service_becomes_a_setting(rendered: list[Object]) -> None:
    """A variable FINETUNE_OPERATOR_PROGRESS_SERVICE_HOST would end the operator's start."""
    assert one(rendered, "Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False
