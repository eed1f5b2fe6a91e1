"""Alerts, dashboards and the scraping of the metrics."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from chart.certificates import certificate
from chart.rendering import FOLDER, Chart, Object, of_kind, one
from chart.value_sets import render
from testbed.prometheus import program


def test_alerts_are_the_file_of_the_chart_for_the_release(chart: Chart) -> None:
    found = render(chart, "monitored")
    text = (FOLDER / "files" / "alerts.yaml").read_text()
    assert 'namespace=~".*"' in text
    ours = yaml.safe_load(text.replace('namespace=~".*"', 'namespace="finetune-system"'))
    assert one(found, "PrometheusRule")["spec"] == ours
    assert one(found, "PrometheusRule")["metadata"]["labels"]["release"] == "prometheus"


def alerts(chart: Chart, values: Object, namespace: str) -> dict[str, Object]:
    rule = one(chart.render(values, namespace=namespace), "PrometheusRule")
    return {each["alert"]: each for group in rule["spec"]["groups"] for each in group["rules"]}


def test_each_release_watches_over_its_own_operator(chart: Chart) -> None:
    for namespace in ("team-a", "team-b"):
        values = {"watchNamespace": namespace, "monitoring": {"prometheusRule": {"enabled": True}}}
        of_operator = {
            name: rule["expr"]
            for name, rule in alerts(chart, values, namespace).items()
            if name.startswith("FineTuneOperator")
        }
        assert len(of_operator) == 4
        assert all(f'namespace="{namespace}"' in expr for expr in of_operator.values())


def test_a_release_that_is_gone_is_told_though_another_is_scraped(chart: Chart, tmp_path: Path) -> None:
    values = {"watchNamespace": "team-a", "monitoring": {"prometheusRule": {"enabled": True}}}
    down = alerts(chart, values, "team-a")["FineTuneOperatorDown"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "operator", "rules": [down]}]}))
    labels = {**down["labels"], "name": "finetunejob", "namespace": "team-a"}
    fires = {"exp_labels": labels, "exp_annotations": down["annotations"]}
    series = 'leader_election_master_status{name="finetunejob",namespace="team-b"}'
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": "1x20"}],
        "alert_rule_test": [{"eval_time": "10m", "alertname": "FineTuneOperatorDown", "exp_alerts": [fires]}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    command = [program("promtool"), "test", "rules", str(tmp_path / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_lead_to_their_runbooks_address(chart: Chart) -> None:
    url = "https://git.example.com/finetune-operator/docs/runbooks.md"
    values = {"monitoring": {"prometheusRule": {"enabled": True, "runbookUrl": url}}}
    for name, rule in alerts(chart, values, "finetune-system").items():
        assert rule["annotations"]["runbook_url"] == f"{url}#{name.lower()}"
        assert "runbook" not in rule["annotations"]


@pytest.mark.parametrize("reports", [True, False])
def test_a_job_that_reports_nothing_alerts_only_where_reports_are_taken(chart: Chart, reports: bool) -> None:
    values = {"progress": {"enabled": reports}, "monitoring": {"prometheusRule": {"enabled": True}}}
    assert ("FineTuneJobSilent" in alerts(chart, values, "finetune-system")) is reports


def test_dashboards_are_the_files_of_the_chart(chart: Chart) -> None:
    files = {path.name: path.read_text() for path in (FOLDER / "files" / "dashboards").glob("*.json")}
    maps = of_kind(render(chart, "monitored"), "ConfigMap")
    assert {name: text.strip() for each in maps for name, text in each["data"].items()} == {
        name: text.strip() for name, text in files.items()
    }
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in maps)
    assert all(each["metadata"]["annotations"] == {"grafana_folder": "ML"} for each in maps)


def test_the_service_monitor_finds_the_metrics_and_nothing_else(chart: Chart) -> None:
    found = render(chart, "monitored")
    monitor = one(found, "ServiceMonitor")["spec"]
    services = [
        service["metadata"]["name"]
        for service in of_kind(found, "Service")
        if monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert services == ["finetune-operator-metrics"]
    assert monitor["endpoints"][0]["interval"] == "10s"


def endpoint(found: list[Object]) -> Object:
    only: list[Object] = one(found, "ServiceMonitor")["spec"]["endpoints"]
    assert len(only) == 1
    return only[0]


def test_prometheus_verifies_the_certificate_by_a_name_that_it_has(chart: Chart, tmp_path: Path) -> None:
    found = render(chart, "monitored")
    tls, secret = endpoint(found)["tlsConfig"], one(found, "Secret")
    assert endpoint(found)["scheme"] == "https"
    assert f"DNS:{tls['serverName']}," in certificate(secret, tmp_path)
    assert tls["ca"]["secret"] == {"name": secret["metadata"]["name"], "key": "ca.crt"}


def test_prometheus_is_told_another_name_token_and_authority_where_they_are_others(chart: Chart) -> None:
    found = endpoint(render(chart, "public-authority"))
    assert found["tlsConfig"] == {"serverName": "tuner.example.com"}
    assert found["authorization"] == {"credentials": {"name": "scraper", "key": "token"}}
    assert "bearerTokenFile" not in found


def test_plain_metrics_are_scraped_plainly(chart: Chart) -> None:
    assert set(endpoint(render(chart, "monitored-plain"))) == {"port", "interval", "honorLabels"}
