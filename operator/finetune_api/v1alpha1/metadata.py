"""The metadata of a job: the fields that every Kubernetes object has, judged as the API server judges them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from finetune_api.base import Contract
from finetune_api.values import DNS_SUBDOMAIN_PATTERN, LABEL_KEY_PATTERN, DnsLabel, LabelKey, LabelValue

_MOST_ANNOTATION_BYTES = 2**18


def _check_moment(text: str) -> str:
    """A time as Go reads it, which is stricter than ISO 8601."""
    try:
        if re.fullmatch(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})", text):
            datetime.fromisoformat(re.sub(r"\.[0-9]+", "", text))
            return text
    except ValueError:
        pass
    raise PydanticCustomError("moment", "must be a time such as 2026-01-31T12:00:00Z")


def _check_size(annotations: dict[str, str]) -> dict[str, str]:
    size = sum(len(text.encode()) for item in annotations.items() for text in item)
    if size > _MOST_ANNOTATION_BYTES:
        raise PydanticCustomError(
            "size", "are {size} bytes; all together may be {most}", {"size": size, "most": _MOST_ANNOTATION_BYTES}
        )
    return annotations


Moment = Annotated[str, AfterValidator(_check_moment)]
# The API server puts it into lower case before it looks at it.
AnnotationKey = Annotated[str, Field(min_length=1, max_length=317, pattern=f"(?i){LABEL_KEY_PATTERN}")]
NamePrefix = Annotated[str, Field(max_length=253, pattern=rf"^({DNS_SUBDOMAIN_PATTERN.strip('^$')}-*)?$")]
_Words = Annotated[str, Field(min_length=1)]


class OwnerReference(Contract):
    """The object that a job goes with when it is deleted."""

    api_version: Annotated[str, Field(pattern=r"^([^/]+/)?[^/]+$")]
    """Its API's group and version."""
    kind: _Words
    """Its kind."""
    name: _Words
    """Its name."""
    uid: _Words
    """Its uid."""
    controller: bool | None = None
    """Whether it is the one that manages the job."""
    block_owner_deletion: bool | None = None
    """Whether it stays until the job is gone."""


class ObjectMeta(Contract):
    """What people write, and what the API server adds: saved from a cluster, a job can be run anywhere."""

    name: Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    """Lower-case letters, digits and '-', at most 50, so that the names of its pods fit too."""
    namespace: DnsLabel | None = None
    """The namespace; `default` without a cluster."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels of the job."""
    annotations: Annotated[dict[AnnotationKey, str], AfterValidator(_check_size)] = Field(default_factory=dict)
    """Annotations of the job."""
    finalizers: tuple[LabelKey, ...] = ()
    """What has to be done before the job is deleted."""
    owner_references: tuple[OwnerReference, ...] = ()
    """The objects that the job goes with."""
    generate_name: NamePrefix | None = None
    """What `kubectl create` makes a name of where none is given; never enough here."""
    uid: str | None = None
    """Set by the API server."""
    resource_version: str | None = None
    """Set by the API server."""
    generation: int | None = None
    """Set by the API server."""
    creation_timestamp: Moment | None = None
    """Set by the API server."""
    deletion_timestamp: Moment | None = None
    """Set by the API server."""
    deletion_grace_period_seconds: int | None = None
    """Set by the API server."""
    self_link: str | None = None
    """Set by the API server before Kubernetes 1.20."""
    managed_fields: tuple[dict[str, Any], ...] = ()
    """Set by the API server, and not looked at."""
