"""The kinds of values that settings have, each with a refusal that says what is allowed."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from finetune_api.values import DNS_LABEL_PATTERN, DNS_SUBDOMAIN_PATTERN

_LABEL_LENGTH, _SUBDOMAIN_LENGTH = 63, 253
_HIGHEST_PORT = 65535
_IMAGE = re.compile(
    r"([A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?/)?"  # the registry
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_HOST_AND_PORT = re.compile(r"([-A-Za-z0-9.]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")


def _refusal(given: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "is {given}; give {allowed}", {"given": repr(given), "allowed": allowed})


def _image(given: str) -> str:
    if not _IMAGE.fullmatch(given):
        raise _refusal(given, "an image, such as registry.example.com/finetune-trainer:0.1.0, or one by @sha256:...")
    return given


def _is_namespace(given: str) -> bool:
    return len(given) <= _LABEL_LENGTH and re.fullmatch(DNS_LABEL_PATTERN, given) is not None


def _namespace(given: str) -> str:
    if not _is_namespace(given):
        raise _refusal(given, "the name of a namespace")
    return given


def _one_namespace_or_all(given: str) -> str:
    if given and not _is_namespace(given):
        raise _refusal(given, "the name of one namespace, or nothing for all; several need an operator each")
    return given


def _pod_name(given: str) -> str:
    if given and (len(given) > _SUBDOMAIN_LENGTH or not re.fullmatch(DNS_SUBDOMAIN_PATTERN, given)):
        raise _refusal(given, "a name of a-z, 0-9, '-' and '.', such as a pod's")
    return given


def _address(given: str) -> str:
    if given:
        try:
            ipaddress.ip_address(given)
        except ValueError:
            raise _refusal(given, "an IP address") from None
    return given


def _https(given: str) -> str:
    """A token is sent there, so never in the clear; and paths are the protocol's own."""
    try:
        parts = urlsplit(given)
        is_right = (
            given == f"https://{parts.netloc}" and bool(_HOST_AND_PORT.fullmatch(parts.netloc)) and parts.port != 0
        )
    except ValueError:  # no port
        is_right = False
    if given and not is_right:
        raise _refusal(given, "https://HOST or https://HOST:PORT, without a path")
    return given


def _file(given: object) -> object:
    if given == "":  # which would be the working directory
        raise _refusal("", "the path of a file, or leave the variable out")
    return given


ImageName = Annotated[str, AfterValidator(_image)]
Namespace = Annotated[str, AfterValidator(_namespace)]
OneNamespaceOrAll = Annotated[str, AfterValidator(_one_namespace_or_all)]
PodName = Annotated[str, AfterValidator(_pod_name)]
Address = Annotated[str, AfterValidator(_address)]
HttpsAddress = Annotated[str, AfterValidator(_https)]
File = Annotated[Path, BeforeValidator(_file)]
Port = Annotated[int, Field(ge=0, le=_HIGHEST_PORT)]
