"""What other operators bring: the fields of their published schemas that are used here; any other is unknown."""

from __future__ import annotations

from chart.rendering import Object

TEXT: Object = {"type": "string"}
FLAG: Object = {"type": "boolean"}
LABELS: Object = {"type": "object", "additionalProperties": TEXT}


def fields(**properties: Object) -> Object:
    return {"type": "object", "properties": properties}


def array(of: Object) -> Object:
    return {"type": "array", "items": of}


RULE = fields(alert=TEXT, expr=TEXT, labels=LABELS, annotations=LABELS, keep_firing_for=TEXT, **{"for": TEXT})
KEY = fields(name=TEXT, key=TEXT)
ENDPOINT = fields(
    port=TEXT,
    interval=TEXT,
    honorLabels=FLAG,
    scheme={**TEXT, "enum": ["http", "https"]},
    bearerTokenFile=TEXT,
    authorization=fields(type=TEXT, credentials=KEY),
    tlsConfig=fields(serverName=TEXT, ca=fields(secret=KEY)),
)
FOREIGN_KINDS = {
    "ServiceMonitor": (
        "monitoring.coreos.com",
        fields(selector=fields(matchLabels=LABELS), endpoints=array(ENDPOINT)),
    ),
    "PrometheusRule": (
        "monitoring.coreos.com",
        fields(groups=array(fields(name=TEXT, interval=TEXT, rules=array(RULE)))),
    ),
    "Certificate": (
        "cert-manager.io",
        fields(
            secretName=TEXT,
            privateKey=fields(algorithm={**TEXT, "enum": ["RSA", "ECDSA", "Ed25519"]}, size={"type": "integer"}),
            duration=TEXT,
            renewBefore=TEXT,
            dnsNames=array(TEXT),
            ipAddresses=array(TEXT),
            issuerRef=fields(name=TEXT, kind=TEXT, group=TEXT),
        ),
    ),
}


def foreign_crd(kind: str) -> Object:
    """The CRD of one of these kinds."""
    group, spec = FOREIGN_KINDS[kind]
    singular = kind.lower()
    schema = {"openAPIV3Schema": fields(spec=spec)}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": crd_name(kind)},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": f"{singular}s", "singular": singular, "listKind": f"{kind}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def crd_name(kind: str) -> str:
    """The name of that CRD."""
    return f"{kind.lower()}s.{FOREIGN_KINDS[kind][0]}"
