"""The network policies: what they let through, judged by a small reader of policies."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from chart.rendering import Chart, Object, RenderingError, of_kind, one
from chart.value_sets import VALUE_SETS

TRAINER = {"finetune-operator.io/job-name": "tuned", "app.kubernetes.io/name": "finetune-job"}
STRANGER = {"app.kubernetes.io/name": "web"}
TEAM, MONITORING = {"kubernetes.io/metadata.name": "team-a"}, {"kubernetes.io/metadata.name": "monitoring"}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(each["key"] in labels for each in selector.get("matchExpressions", []))


def allows(rules: list[Object], side: str, peer: Any, port: int, own: dict[str, str]) -> bool:
    """Whether a rule lets a peer through: labels of a namespace and of a pod, or an address."""

    def is_peer(given: Object) -> bool:
        if "ipBlock" in given:
            block = given["ipBlock"]
            if not isinstance(peer, str):
                return False
            inside = lambda cidr: ipaddress.ip_address(peer) in ipaddress.ip_network(cidr)  # noqa: E731
            return inside(block["cidr"]) and not any(inside(cidr) for cidr in block.get("except", []))
        if isinstance(peer, str):
            return False
        namespace, pod = peer
        near = selects(given["namespaceSelector"], namespace) if "namespaceSelector" in given else namespace == own
        return near and selects(given.get("podSelector", {}), pod)

    def is_port(rule: Object) -> bool:
        return "ports" not in rule or any(each["port"] == port for each in rule["ports"])

    assert all(rule.get(side) != [] for rule in rules), "an empty list lets everything through"
    return any(is_port(rule) and (side not in rule or any(map(is_peer, rule[side]))) for rule in rules)


@pytest.mark.security(22)
def test_the_operator_is_closed_but_for_reports_and_scrapes(chart: Chart) -> None:
    found = chart.render(VALUE_SETS["closed-tightly"])
    policy = next(each for each in of_kind(found, "NetworkPolicy") if each["metadata"]["name"] == "finetune-operator")
    pod = one(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    own = {"kubernetes.io/metadata.name": "finetune-system"}
    assert selects(policy["spec"]["podSelector"], pod)
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]

    def comes_in(namespace: dict[str, str], labels: dict[str, str], port: int) -> bool:
        return allows(policy["spec"]["ingress"], "from", (namespace, labels), port, own)

    def goes_out(peer: Any, port: int) -> bool:
        return allows(policy["spec"]["egress"], "to", peer, port, own)

    assert comes_in(TEAM, TRAINER, 8443)
    assert comes_in(own, pod, 8443)
    assert comes_in(MONITORING, STRANGER, 8444)
    assert not comes_in(TEAM, STRANGER, 8443)
    for port in (8080, 8444):
        assert not comes_in(TEAM, TRAINER, port)
        assert not comes_in(TEAM, STRANGER, port)
    assert not comes_in(MONITORING, STRANGER, 8080)
    assert goes_out("10.0.0.1", 6443)
    assert goes_out("fd00::1", 6443)
    assert goes_out((own, pod), 8443)
    assert goes_out(({"kubernetes.io/metadata.name": "kube-system"}, STRANGER), 53)
    assert not goes_out("10.0.0.2", 6443)
    assert not goes_out("169.254.169.254", 80)
    assert not goes_out((TEAM, TRAINER), 8443)


@pytest.mark.security(22)
def test_training_pods_reach_the_hub_and_no_private_address(chart: Chart) -> None:
    found = chart.render(VALUE_SETS["closed-tightly"])
    policies = [each for each in of_kind(found, "NetworkPolicy") if each["metadata"]["name"].endswith("-training")]
    assert [each["metadata"]["namespace"] for each in policies] == ["team-a", "team-b"]
    policy = policies[0]
    operator = one(found, "Deployment")["spec"]["template"]["metadata"]["labels"]

    def goes_out(peer: Any, port: int) -> bool:
        return allows(policy["spec"]["egress"], "to", peer, port, TEAM)

    assert selects(policy["spec"]["podSelector"], TRAINER)
    assert not selects(policy["spec"]["podSelector"], STRANGER)
    assert allows(policy["spec"]["ingress"], "from", (TEAM, TRAINER), 29500, TEAM)
    assert not allows(policy["spec"]["ingress"], "from", (TEAM, STRANGER), 29500, TEAM)
    assert not allows(policy["spec"]["ingress"], "from", (MONITORING, TRAINER), 29500, TEAM)
    assert goes_out("18.164.1.1", 443)
    assert goes_out("2600:9000::1", 443)
    assert goes_out("10.5.1.1", 9000)
    assert goes_out((TEAM, TRAINER), 29500)
    assert goes_out(({"kubernetes.io/metadata.name": "finetune-system"}, operator), 8443)
    assert not goes_out(({"kubernetes.io/metadata.name": "finetune-system"}, STRANGER), 8443)
    assert not goes_out("18.164.1.1", 22)
    private = ("10.0.0.1", "10.96.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "100.64.0.1")
    assert not [
        address for address in (*private, "::1", "fd00::1", "fe80::1", "::ffff:a9fe:a9fe") if goes_out(address, 443)
    ]


@pytest.mark.parametrize(
    ("values", "answers", "silent"),
    [
        ("closed-tightly", [("kube-system", 53)], [("openshift-dns", 5353), ("openshift-dns", 53)]),
        ("openshift", [("openshift-dns", 5353)], [("kube-system", 53), ("openshift-dns", 53)]),
        ("closed-and-fronted", [("169.254.20.10", 53), ("10.96.0.10", 53)], [("kube-system", 53), ("10.96.0.11", 53)]),
    ],
)
def test_both_kinds_of_pods_reach_dns_where_it_is(
    chart: Chart, values: str, answers: list[tuple[str, int]], silent: list[tuple[str, int]]
) -> None:
    policies = of_kind(chart.render(VALUE_SETS[values]), "NetworkPolicy")
    assert len(policies) >= 2
    for policy in policies:
        for wanted, places in ((True, answers), (False, silent)):
            for place, port in places:
                address = place[0].isdigit()
                peer = place if address else ({"kubernetes.io/metadata.name": place}, STRANGER)
                assert allows(policy["spec"]["egress"], "to", peer, port, TEAM) is wanted, (place, port)


def test_more_is_let_through_by_rules_of_ones_own(chart: Chart) -> None:
    found = {each["metadata"]["name"]: each for each in of_kind(fronted(chart), "NetworkPolicy")}
    outwards = found["finetune-operator-training"]["spec"]["egress"]
    storage = {"kubernetes.io/metadata.name": "storage"}
    assert allows(outwards, "to", (storage, {"app": "minio"}), 9000, TEAM)
    assert not allows(outwards, "to", (storage, {"app": "minio"}), 443, TEAM)
    assert not allows(outwards, "to", (storage, STRANGER), 9000, TEAM)
    assert not allows(outwards, "to", "18.164.1.1", 9000, TEAM)
    assert allows(outwards, "to", "10.7.1.1", 8443, TEAM)
    assert not allows(outwards, "to", "10.7.9.1", 8443, TEAM)
    inwards = found["finetune-operator"]["spec"]["ingress"]
    assert allows(inwards, "from", ({"kubernetes.io/metadata.name": "gateways"}, STRANGER), 8443, {})
    assert not allows(inwards, "from", (TEAM, STRANGER), 8443, {})


def fronted(chart: Chart) -> list[Object]:
    return chart.render(VALUE_SETS["closed-and-fronted"])


CLOSED = {"enabled": True, "training": {"namespaces": ["team-a"]}}
RULE = {"ipBlock": {"cidr": "10.7.0.1/32"}}


@pytest.mark.parametrize("url", ["https://tuner.example.com", "https://10.96.0.51:8443", "https://10.96.0.50"])
def test_a_way_to_the_progress_server_that_is_closed_is_no_silent_one(chart: Chart, url: str) -> None:
    progress = {"url": url, "service": {"clusterIP": "10.96.0.50"}}

    def refusal(policy: Object) -> str:
        with pytest.raises(RenderingError) as caught:
            chart.render({"progress": progress, "networkPolicy": policy})
        return str(caught.value)

    host, _, port = url.removeprefix("https://").partition(":")
    for name, policy in (
        ("networkPolicy.extraIngress", {**CLOSED, "training": {}}),
        ("networkPolicy.training.extraEgress", {**CLOSED, "enabled": False}),
    ):
        said = refusal(policy)
        assert f"{name}: progress.url leads to {host}, port {port or 443}, and not to the Service, port 8443" in said
    given = {"extraIngress": [{"from": [RULE]}], "training": {**CLOSED["training"], "extraEgress": [{"to": [RULE]}]}}
    assert chart.render({"progress": progress, "networkPolicy": {**CLOSED, **given}})


@pytest.mark.parametrize("host", ["10.96.0.50", "finetune-operator-progress.finetune-system.svc.corp.example"])
def test_another_name_of_the_service_leads_to_it(chart: Chart, host: str) -> None:
    progress = {"url": f"https://{host}:8443", "service": {"clusterIP": "10.96.0.50"}}
    assert chart.render({"progress": progress, "networkPolicy": CLOSED})


def test_without_limits_the_api_server_may_be_anywhere(chart: Chart) -> None:
    policy = one(chart.render(VALUE_SETS["closed"]), "NetworkPolicy")
    for port in (443, 6443):
        assert allows(policy["spec"]["egress"], "to", "10.1.2.3", port, {})
    assert not allows(policy["spec"]["egress"], "to", "10.1.2.3", 80, {})
    assert allows(policy["spec"]["ingress"], "from", (TEAM, STRANGER), 8444, {})
    policy = one(chart.render(VALUE_SETS["closed-plain"]), "NetworkPolicy")
    assert allows(policy["spec"]["ingress"], "from", (TEAM, STRANGER), 8080, {})
    assert not allows(policy["spec"]["ingress"], "from", (TEAM, STRANGER), 8444, {})
