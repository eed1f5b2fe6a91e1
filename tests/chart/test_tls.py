"""The certificate of the progress server and of the metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from chart.certificates import certificate
from chart.rendering import Chart, environment, of_kind, one
from chart.value_sets import render


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ("defaults", "DNS:finetune-operator-progress.finetune-system.svc,"),
        ("defaults", "DNS:finetune-operator-metrics.finetune-system.svc,"),
        ("silent", "DNS:finetune-operator-metrics.finetune-system.svc,"),
        ("plain-metrics", "DNS:finetune-operator-progress.finetune-system.svc,"),
        ("own-address", "IP Address:10.96.0.50"),
        ("own-name", "DNS:progress.example.com"),
    ],
)
def test_a_self_signed_certificate_names_what_pods_and_prometheus_are_told(
    chart: Chart, tmp_path: Path, values: str, name: str
) -> None:
    found = render(chart, values)
    secret = one(found, "Secret")
    assert secret["type"] == "kubernetes.io/tls"
    text = certificate(secret, tmp_path)
    assert name in text
    for each in secret["metadata"]["annotations"]["finetune-operator.io/names"].split(","):
        assert each in text, "by this annotation an upgrade judges whether it must be made anew"


@pytest.mark.parametrize("values", ["defaults", "existing-secret", "cert-manager", "cert-manager-elsewhere"])
def test_the_certificate_is_mounted_from_where_it_is(chart: Chart, values: str) -> None:
    found = render(chart, values)
    volume = one(found, "Deployment")["spec"]["template"]["spec"]["volumes"][0]
    made = of_kind(found, "Secret") + of_kind(found, "Certificate")
    names = [each.get("spec", {}).get("secretName", each["metadata"]["name"]) for each in made] or ["mine"]
    assert [volume["secret"]["secretName"]] == names


def test_an_authority_that_everybody_knows_is_not_given_to_pods(chart: Chart) -> None:
    assert "FINETUNE_PROGRESS_CA" not in environment(render(chart, "public-authority"))


def test_with_nothing_over_tls_there_is_no_certificate(chart: Chart) -> None:
    found = render(chart, "plain")
    assert not of_kind(found, "Secret")
    assert "volumes" not in one(found, "Deployment")["spec"]["template"]["spec"]
