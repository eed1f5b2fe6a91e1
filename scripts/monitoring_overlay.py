"""Print the chart's alerts and dashboards as objects for manifests/overlays/monitoring. `make generate` writes them."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import indent

FILES = Path(__file__).resolve().parent.parent / "helm" / "finetune-operator" / "files"

HEAD = "# Generated from helm/finetune-operator/files by `make generate`; do not edit.\n"
RULE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: finetune-operator
  namespace: finetune-system
  labels:
    app.kubernetes.io/name: finetune-operator
spec:
"""
DASHBOARD = """\
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: finetune-operator-dashboard-{path.stem}
  namespace: finetune-system
  labels:
    app.kubernetes.io/name: finetune-operator
    grafana_dashboard: "1"
data:
  {path.name}: |-
"""


def objects() -> str:
    """All of them, a YAML stream."""
    parts = [HEAD, RULE, indent((FILES / "alerts.yaml").read_text(encoding="utf-8"), "  ")]
    for path in sorted((FILES / "dashboards").glob("*.json")):
        parts += [DASHBOARD.format(path=path), indent(path.read_text(encoding="utf-8"), "    ")]
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(objects())
