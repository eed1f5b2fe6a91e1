"""What the chart makes of its values."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import FOLDER, MANIFESTS, Chart, Object, container, environment, of_kind, one
from chart.value_sets import DIGEST, VALUE_SETS
from finetune_operator.host.settings import OperatorSettings, from_environment
from testbed.prometheus import program

CRD_FILE = MANIFESTS / "crds" / "finetunejobs.yaml"


@pytest.fixture(params=VALUE_SETS)
def rendered(chart: Chart, request: pytest.FixtureRequest) -> list[Object]:
    return chart.render(VALUE_SETS[request.param])


def render(chart: Chart, values: str, **options: str) -> list[Object]:
    return chart.render(VALUE_SETS[values], **options)


def test_every_rendering_is_whole(rendered: list[Object]) -> None:
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in rendered]
    assert len(names) == len(set(names))
    for each in rendered:
        if each["kind"] != "CustomResourceDefinition":
            assert "app.kubernetes.io/managed-by" in each["metadata"]["labels"], each["metadata"]


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


def test_chart_and_code_have_one_version() -> None:
    meta = yaml.safe_load((FOLDER / "Chart.yaml").read_text())
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    assert f'version = "{meta["appVersion"]}"' in project


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


def test_the_defaults_make_nothing_that_needs_another_operator(chart: Chart) -> None:
    kinds = {each["kind"] for each in chart.render()}
    assert kinds == {
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Deployment", "PodDisruptionBudget", "Role",
        "RoleBinding", "Secret", "Service", "ServiceAccount",
    }  # fmt: skip


def test_the_crd_is_the_generated_one_and_stays(chart: Chart) -> None:
    generated = yaml.safe_load(CRD_FILE.read_text())
    assert (FOLDER / "files" / "finetunejobs.yaml").read_bytes() == CRD_FILE.read_bytes(), "run `make generate`"
    kept = one(chart.render(), "CustomResourceDefinition")
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert kept == generated
    assert one(render(chart, "crd-goes"), "CustomResourceDefinition") == generated
    assert not of_kind(render(chart, "without-crd"), "CustomResourceDefinition")


def test_integers_of_the_crd_stay_integers(chart: Chart) -> None:
    """Helm's parser makes floats of them, and the API server refuses `maxLength: 1.048576e+06`."""
    text = chart.run("template", str(FOLDER))
    assert "1048576" in text
    assert "e+0" not in text


def certificate(secret: Object, folder: Path) -> str:
    """What openssl says of the certificate, verified by its authority."""
    for key in ("ca.crt", "tls.crt", "tls.key"):
        (folder / key).write_bytes(base64.b64decode(secret["data"][key]))
    subprocess.run(["openssl", "verify", "-CAfile", "ca.crt", "tls.crt"], cwd=folder, check=True, capture_output=True)
    command = ["openssl", "x509", "-in", "tls.crt", "-noout", "-text"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


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


@pytest.mark.parametrize("values", ["existing-secret", "cert-manager", "silent", "monitored"])
def test_tools_that_ask_no_cluster_render_the_same_each_time(chart: Chart, values: str, tmp_path: Path) -> None:
    """Argo CD compares what it renders: only a self-signed certificate is another each time."""
    given = {"tls": {"source": "Secret"}, **VALUE_SETS[values]}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(given))
    command = ("template", "tuner", str(FOLDER), f"--values={tmp_path / 'values.yaml'}")
    assert chart.run(*command) == chart.run(*command)


def test_an_authority_that_everybody_knows_is_not_given_to_pods(chart: Chart) -> None:
    assert "FINETUNE_PROGRESS_CA" not in environment(render(chart, "public-authority"))


def test_without_progress_there_is_no_port_for_it(chart: Chart) -> None:
    found = render(chart, "silent")
    assert [service["metadata"]["name"] for service in of_kind(found, "Service")] == ["finetune-operator-metrics"]
    assert not [name for name in environment(found) if "PROGRESS" in name]


def test_with_nothing_over_tls_there_is_no_certificate(chart: Chart) -> None:
    found = render(chart, "plain")
    assert not of_kind(found, "Secret")
    assert "volumes" not in one(found, "Deployment")["spec"]["template"]["spec"]


@pytest.mark.parametrize(("values", "port"), [("defaults", 8444), ("plain-metrics", 8080)])
def test_the_metrics_service_leads_to_where_the_metrics_are(chart: Chart, values: str, port: int) -> None:
    found = render(chart, values)
    [service] = one(found, "Service", "finetune-operator-metrics")["spec"]["ports"]
    settings = from_environment(environment(found))
    served = settings.metrics_port if settings.metrics_certificate else settings.http_port
    assert (service["port"], served) == (port, port)


@pytest.mark.parametrize(
    ("options", "values", "name"),
    [
        ({"release": "finetune-operator"}, {}, "finetune-operator"),
        ({"release": "prod"}, {}, "prod-finetune-operator"),
        ({"release": "prod"}, {"nameOverride": "tuner"}, "prod-tuner"),
        ({"release": "prod"}, {"fullnameOverride": "tuner"}, "tuner"),
        ({"release": "r" * 53}, {}, "r" * 40),
    ],
)
def test_names(chart: Chart, options: dict[str, str], values: dict[str, Any], name: str) -> None:
    found = chart.render(values, **options)
    assert one(found, "Deployment")["metadata"]["name"] == name
    assert max(len(service["metadata"]["name"]) for service in of_kind(found, "Service")) <= 63


def test_two_namespaced_releases_of_one_name_share_nothing(chart: Chart) -> None:
    def identities(namespace: str) -> set[tuple[str, str, str]]:
        found = chart.render({"watchNamespace": namespace, "crd": {"install": False}}, namespace=namespace)
        return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}

    assert not identities("team-a") & identities("team-b")


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
