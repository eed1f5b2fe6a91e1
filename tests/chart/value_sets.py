"""Values that together switch everything on and off."""

from __future__ import annotations

from typing import Any

from chart.rendering import Chart, Object

ON = {"enabled": True}
PLAIN = {"progress": {"enabled": False}, "metrics": {"secure": False}}
"""Nothing is served over TLS."""
READERS = [{"namespace": "monitoring", "name": "prometheus"}, {"namespace": "team-a", "name": "scraper"}]
IN_THE_SYSTEMS_POOL = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["system"]}]}
NODES_WITH_REPLICAS = {
    "topologyKey": "kubernetes.io/hostname",
    "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "finetune-operator"}},
}
GATEWAY = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}
STORE = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}},
    "podSelector": {"matchLabels": {"app": "minio"}},
}
DIGEST = "sha256:" + "0a" * 32

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one-namespace": {"watchNamespace": "team-a"},
    "one-namespace-plain": {"watchNamespace": "team-a", **PLAIN},
    "plain": PLAIN,
    "silent": {"progress": {"enabled": False}},
    "plain-metrics": {"metrics": {"secure": False}},
    "existing-secret": {"tls": {"source": "Secret", "secretName": "mine"}},
    "public-authority": {
        "tls": {"source": "Secret", "caKey": ""},
        "progress": {"url": "https://tuner.example.com:8443"},
        "monitoring": {"serviceMonitor": {**ON, "serverName": "tuner.example.com", "tokenSecret": "scraper"}},
    },
    "cert-manager": {"tls": {"source": "CertManager", "certManager": {"issuerName": "internal"}}},
    "cert-manager-elsewhere": {
        "progress": {"url": "https://10.96.0.50:8443"},
        "tls": {
            "source": "CertManager",
            "secretName": "own",
            "certManager": {
                "issuerName": "internal",
                "issuerKind": "ClusterIssuer",
                "duration": "2160h",
                "renewBefore": "360h",
            },
        },
    },
    "short-lived": {"tls": {"validityDays": 30}},
    "read": {"metrics": {"readers": READERS}},
    "one-namespace-read": {"watchNamespace": "team-a", "metrics": {"readers": READERS}},
    "own-address": {"progress": {"url": "https://10.96.0.50:8443", "service": {"clusterIP": "10.96.0.50"}}},
    "own-name": {"progress": {"url": "https://progress.example.com", "port": 9443}},
    "without-crd": {"crd": {"install": False}},
    "crd-goes": {"crd": {"keep": False}},
    "one-replica": {"replicas": 1, "podDisruptionBudget": {"enabled": False}},
    "stopped": {"replicas": 0},
    "own-account": {"serviceAccount": {"create": False, "name": "given"}, "rbac": {"create": False}},
    "annotated-account": {"serviceAccount": {"name": "named", "annotations": {"example.com/role": "tuner"}}},
    "user-roles": {"rbac": {"aggregateToUserRoles": True}},
    "digests": {
        "image": {"repository": "registry.example.com/ml/finetune-operator", "digest": DIGEST, "pullPolicy": "Always"},
        "trainer": {"image": {"repository": "registry.example.com:5000/trainer", "digest": DIGEST}},
        "imagePullSecrets": ["registry"],
    },
    "tags": {"image": {"tag": "1.2.3"}, "trainer": {"image": {"tag": "4.5.6", "pullPolicy": "Never"}}},
    "large-models": {"trainer": {"ephemeralStorage": "500Gi"}},
    "gpu-pools": {
        "trainer": {
            "gpu": {
                "runtimeClassName": "nvidia",
                "tolerations": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}, {"key": "amd.com/gpu"}],
            }
        }
    },
    "untolerated": {"trainer": {"gpu": {"tolerations": []}}},
    "openshift": {
        "securityContext": {"fixedUser": False},
        "networkPolicy": {
            **ON,
            "dns": {"namespaces": ["openshift-dns"], "ports": [5353]},
            "training": {"namespaces": ["team-a"]},
        },
    },
    "settings": {
        "workers": 4,
        "resyncSeconds": 60.5,
        "leaseSeconds": 30,
        "health": {"port": 9090},
        "metrics": {"port": 9443},
    },
    "placed": {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "platform"},
        "podAnnotations": {"example.com/note": "kept"},
        "resources": {"requests": {"cpu": "", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": ""}},
    },
    "kept-apart": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [IN_THE_SYSTEMS_POOL]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": IN_THE_SYSTEMS_POOL}],
            },
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [NODES_WITH_REPLICAS]},
            "podAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "podAffinityTerm": {**NODES_WITH_REPLICAS, "namespaces": ["monitoring"]}}
                ]
            },
        }
    },
    "unlimited": {"resources": {"requests": {"cpu": "", "memory": ""}, "limits": {"memory": ""}}},
    "closed": {"networkPolicy": ON},
    "closed-plain": {"networkPolicy": ON, **PLAIN},
    "closed-tightly": {
        "networkPolicy": {
            **ON,
            "metricsFromNamespaces": {"kubernetes.io/metadata.name": "monitoring"},
            "apiServer": {"ports": [6443], "cidrs": ["10.0.0.1/32", "fd00::1/128"]},
            "training": {"namespaces": ["team-a", "team-b"], "publicPorts": [443, 9000], "cidrs": ["10.5.0.0/16"]},
        }
    },
    "closed-and-fronted": {
        "progress": {"url": "https://tuner.example.com:8443"},
        "networkPolicy": {
            **ON,
            "extraIngress": [{"from": [GATEWAY], "ports": [{"port": 8443}]}],
            "dns": {"namespaces": [], "cidrs": ["169.254.20.10/32", "10.96.0.10/32"]},
            "training": {
                "namespaces": ["team-a"],
                "extraEgress": [
                    {"to": [{"ipBlock": {"cidr": "10.7.0.0/16", "except": ["10.7.9.0/24"]}}]},
                    {"to": [STORE], "ports": [{"port": 9000, "protocol": "TCP"}]},
                ],
            },
        },
    },
    "monitored": {
        "monitoring": {
            "serviceMonitor": {**ON, "interval": "10s", "labels": {"release": "prometheus"}},
            "prometheusRule": {**ON, "labels": {"release": "prometheus"}},
            "dashboards": {**ON, "annotations": {"grafana_folder": "ML"}},
        }
    },
    "monitored-with-runbooks": {
        "monitoring": {"prometheusRule": {**ON, "runbookUrl": "https://git.example.com/docs/runbooks.md"}}
    },
    "monitored-plain": {"monitoring": {"serviceMonitor": ON}, **PLAIN},
    "policies": {
        "admissionPolicy": {
            "sources": {**ON, "models": ["hf://allowed/"], "data": ["pvc://data/"], "outputs": ["pvc://models/"]},
            "images": {**ON, "allowed": ["registry.example.com/trainer:2"]},
            "namespaceLabels": {"policy": "strict"},
        }
    },
    "model-policy": {"admissionPolicy": {"sources": {**ON, "models": ["hf://allowed/", "pvc://base/one"]}}},
    "renamed": {"nameOverride": "tuner"},
    "renamed-wholly": {"fullnameOverride": "tuner"},
    "below-another-chart": {"global": {"anything": 1}},
}


def render(chart: Chart, name: str) -> list[Object]:
    """The chart with one of them."""
    return chart.render(VALUE_SETS[name])
