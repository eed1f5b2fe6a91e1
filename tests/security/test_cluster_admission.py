"""Without the operator the API server judges FineTuneJobs all the same: nothing of it stands in a request's way."""

from __future__ import annotations

import pytest

from contract_cases import changed
from operator_jobs import job
from testbed.client import RequestError
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.security(23)]

ADMISSION = "/apis/admissionregistration.k8s.io/v1"


def test_the_operator_registers_no_webhook_and_judging_outlives_it(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.apply(job(), "before")
    namespace.until("before", "Reconciling")
    for kind in ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"):
        assert cluster.client.items(f"{ADMISSION}/{kind}") == []
    operator.freeze()
    try:
        namespace.apply(job(), "meanwhile")
        for wrong in (
            changed(job(), ("spec", "training"), {"epochs": 0}),
            changed(job(), ("spec", "strategy"), {"full": {}, "auto": {}}),
            changed(job(), ("spec", "task"), "Telepathy"),
        ):
            with pytest.raises(RequestError, match=r"spec\.") as refused:
                namespace.apply(wrong, "wrong")
            assert refused.value.status == 422
        cluster.client.create(namespace.path("configmaps"), {"metadata": {"name": "anything"}})
    finally:
        operator.thaw()
    namespace.bound_pod("meanwhile")
