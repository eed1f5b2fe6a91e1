"""Finds the cluster as kubectl does: by a kubeconfig, and in a pod without one by the pod's ServiceAccount."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from kubernetes import client, config
from kubernetes.config import incluster_config
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

_DEFAULT_PLACE = "~/.kube/config"
_DEFAULT_NAMESPACE = "default"


class NoCluster(Exception):
    """There is none; the message says why."""


def find_cluster(kubeconfig: str | None, context: str | None) -> tuple[client.Configuration, str]:
    """How to reach it, and the namespace to look in. Raises NoCluster."""
    place = kubeconfig or os.environ.get("KUBECONFIG") or _DEFAULT_PLACE
    configuration = client.Configuration()
    try:
        # Not `load_kube_config`: it does not tell the context, and to list all of them needs a current one.
        merged = KubeConfigMerger(place)
        if merged.config is None:
            if kubeconfig or context:
                raise NoCluster(f"there is no kubeconfig at {place}")
            return configuration, _load_from_pod(configuration, place)
        loader = KubeConfigLoader(merged.config, active_context=context, config_base_path=None)
        loader.load_and_set(configuration)
        namespace = loader.current_context["context"].get("namespace")
    except (config.ConfigException, OSError) as error:
        raise NoCluster(str(error)) from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        # The library takes its form for granted.
        raise NoCluster(f"{place} is no kubeconfig") from None
    return configuration, namespace or _DEFAULT_NAMESPACE


def _load_from_pod(configuration: client.Configuration, place: str) -> str:
    """Fill in what a pod is given; returns the pod's namespace."""
    try:
        config.load_incluster_config(configuration)
    except config.ConfigException:
        raise NoCluster(f"there is no kubeconfig at {place}, and this is no pod with a ServiceAccount") from None
    file = Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace")
    return file.read_text() if file.exists() else _DEFAULT_NAMESPACE
