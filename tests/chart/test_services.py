"""The Services, and whatever else leads to the pods."""

from __future__ import annotations

import pytest

from chart.rendering import Chart, Object, container, environment, of_kind, one
from chart.value_sets import render
from finetune_operator.host.settings import from_environment


def test_selectors_find_the_pods(rendered: list[Object]) -> None:
    deployment = one(rendered, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in of_kind(rendered, "Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of_kind(rendered, "PodDisruptionBudget")]
    assert len(selectors) >= 2
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()


def test_probes_and_services_name_ports_that_are_there(rendered: list[Object]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(rendered)["ports"]}
    assert container(rendered)["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container(rendered)["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    for service in of_kind(rendered, "Service"):
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]


def test_without_progress_there_is_no_port_for_it(chart: Chart) -> None:
    found = render(chart, "silent")
    assert [service["metadata"]["name"] for service in of_kind(found, "Service")] == ["finetune-operator-metrics"]
    assert not [name for name in environment(found) if "PROGRESS" in name]


@pytest.mark.parametrize(("values", "port"), [("defaults", 8444), ("plain-metrics", 8080)])
def test_the_metrics_service_leads_to_where_the_metrics_are(chart: Chart, values: str, port: int) -> None:
    found = render(chart, values)
    [service] = one(found, "Service", "finetune-operator-metrics")["spec"]["ports"]
    settings = from_environment(environment(found))
    served = settings.metrics_port if settings.metrics_certificate else settings.http_port
    assert (service["port"], served) == (port, port)
