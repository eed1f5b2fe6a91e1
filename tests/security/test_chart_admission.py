"""What judges a FineTuneJob before it is stored: the API server itself, by schema, rules and policies; no webhook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from chart.rendering import MANIFESTS, Chart, of_kind
from chart.value_sets import VALUE_SETS

pytest_plugins = ["chart.conftest"]
pytestmark = pytest.mark.security(23)

WEBHOOKS = {"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_rendering_has_a_webhook(chart: Chart, values: str) -> None:
    assert not [each for each in chart.render(VALUE_SETS[values]) if each["kind"] in WEBHOOKS]


def test_no_manifest_has_a_webhook() -> None:
    files = [path for path in MANIFESTS.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if "Webhook" in path.read_text(encoding="utf-8")]


def rules_in(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (rule["rule"] for rule in node.get("x-kubernetes-validations", ()))
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from rules_in(inner)


def test_the_crd_has_the_rules_and_policies_come_on_top_and_close_when_they_fail(chart: Chart) -> None:
    found = chart.render(VALUE_SETS["policies"])
    [crd] = of_kind(found, "CustomResourceDefinition")
    assert len(set(rules_in(crd))) > 20
    policies = of_kind(found, "ValidatingAdmissionPolicy")
    judged = []
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Fail"
        [rule] = policy["spec"]["matchConstraints"]["resourceRules"]
        judged.append(rule["resources"])
    assert judged == [["finetunejobs"], ["pods", "pods/ephemeralcontainers"], ["jobs"]]
    for binding in of_kind(found, "ValidatingAdmissionPolicyBinding"):
        assert binding["spec"]["validationActions"] == ["Deny"]
        assert "namespaceSelector" in binding["spec"]["matchResources"]
