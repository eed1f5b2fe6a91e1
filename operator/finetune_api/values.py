"""Value types of the contract: decimal strings, quantities, URIs, names and lists without repetition."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_SUBDOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_QUALIFIED_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_HUB_NAME = r"[A-Za-z0-9][-A-Za-z0-9._]*"

DECIMAL_PATTERN = r"^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
# More than zero: a digit that is not 0 stands before or after the point.
QUANTITY_PATTERN = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
# The class names its characters: what \s means differs between Go, Rust and Python.
URI_PATTERN = r"^(hf|pvc|s3|file|https)://[^\x00-\x20\x7f?#]+$"
DNS_LABEL_PATTERN = rf"^{_DNS_LABEL}$"
DNS_SUBDOMAIN_PATTERN = rf"^{_DNS_SUBDOMAIN}$"
LABEL_KEY_PATTERN = rf"^({_DNS_SUBDOMAIN}/)?{_QUALIFIED_NAME}$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
EXTENDED_RESOURCE_PATTERN = rf"^{_DNS_SUBDOMAIN}/{_QUALIFIED_NAME}$"

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Decimal:
    """A finite number written as a string ("2e-4"), a `float` in Python.

    Kubernetes' API conventions discourage floats, and a string cannot carry NaN into JSON. In Python
    a float is taken too, so that code can build models; in a manifest only the string is.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from_text = core_schema.no_info_after_validator_function(
            self._parse, core_schema.str_schema(max_length=24, strict=True)
        )
        from_number = core_schema.no_info_after_validator_function(self._check, core_schema.float_schema(strict=True))
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema([from_number, from_text], mode="left_to_right"),
            serialization=core_schema.plain_serializer_function_ser_schema(_decimal_text, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        bounds = " && ".join(f"double(self) {sign} {float(limit)!r}" for sign, limit in self._bounds())
        return {
            "type": "string",
            "pattern": DECIMAL_PATTERN,
            "maxLength": 24,
            "x-kubernetes-validations": [
                {
                    # The conversion fails for "1e999", so a rule without bounds refuses it too.
                    "rule": bounds or "double(self) == double(self)",
                    "message": f"must be a number {self._allowed()}" if bounds else "must be finite",
                }
            ],
        }

    def _bounds(self) -> list[tuple[str, float]]:
        limits = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        return [(sign, limit) for sign, limit in limits if limit is not None]

    def _allowed(self) -> str:
        return " and ".join(f"{sign} {limit:g}" for sign, limit in self._bounds())

    def _parse(self, text: str) -> float:
        if not re.fullmatch(DECIMAL_PATTERN, text):
            raise PydanticCustomError("decimal", 'must be a finite number as a quoted string, such as "0.1" or "2e-4"')
        return self._check(float(text))

    def _check(self, value: float) -> float:
        if not math.isfinite(value):
            raise PydanticCustomError("decimal", "must be finite")
        inside = (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )
        if not inside:
            raise PydanticCustomError("decimal", "must be a number {allowed}", {"allowed": self._allowed()})
        return value


def _decimal_text(value: float) -> str:
    return repr(float(value))


def finite_or_none(value: float | None) -> float | None:
    """The value, or None where JSON could not carry it (NaN, infinity)."""
    return value if value is not None and math.isfinite(value) else None


class _Quantity:
    """A Kubernetes quantity, more than zero: a string with a unit, or a plain integer (kept as its string)."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(pattern=QUANTITY_PATTERN, max_length=24, strict=True)
        number = core_schema.no_info_after_validator_function(
            str, core_schema.int_schema(ge=1, le=_INT64_MAX, strict=True)
        )
        return core_schema.union_schema(
            [text, number],
            mode="left_to_right",
            custom_error_type="quantity",
            custom_error_message='must be a quantity more than 0, such as 2, "500m" or "16Gi"',
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 24, "minimum": 1}


OBJECT_STORE = "s3://"
"""What the URIs of object stores begin with."""
_PARENT_SEGMENT = r"(^|/)\.\.(/|$)"
NO_PARENT = 'must not contain ".." as a path segment'
URI_SHAPES = {
    "hf://": (rf"^hf://(datasets/)?{_HUB_NAME}(/{_HUB_NAME})?$", "must be hf://owner/name or hf://datasets/owner/name"),
    "pvc://": (rf"^pvc://{_DNS_SUBDOMAIN}(/.*)?$", "must be pvc://claim/path"),
    OBJECT_STORE: (r"^s3://[a-z0-9][-a-z0-9.]+(/.*)?$", "must be s3://bucket/path"),
    "https://": (r"^https://[^/@]+(/.*)?$", "must be https://host/path, without a user or password"),
}


class _Uri:
    """Where something is: hf://, pvc://, s3://, file:// or https://, without a step up ("..")."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self._check, core_schema.str_schema(min_length=1, max_length=1024, strict=True)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        shapes = [
            {"rule": f"!self.startsWith('{scheme}') || self.matches(r'{pattern}')", "message": message}
            for scheme, (pattern, message) in URI_SHAPES.items()
        ]
        # Go's regular expressions have no look-ahead, so the forbidden segment is a rule of its own.
        no_parent = {"rule": f"!self.matches(r'{_PARENT_SEGMENT}')", "message": NO_PARENT}
        return {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": URI_PATTERN,
            "x-kubernetes-validations": [no_parent, *shapes],
        }

    @staticmethod
    def _check(uri: str) -> str:
        if not re.fullmatch(URI_PATTERN, uri):
            raise PydanticCustomError(
                "uri",
                "must be a URI that starts with hf://, pvc://, s3://, file:// or https://, without spaces, '?' or '#'",
            )
        if re.search(_PARENT_SEGMENT, uri):
            raise PydanticCustomError("uri", NO_PARENT)
        for scheme, (pattern, message) in URI_SHAPES.items():
            if uri.startswith(scheme) and not re.fullmatch(pattern, uri):
                raise PydanticCustomError("uri", "{message}", {"message": message})
        return uri


@dataclass(frozen=True, slots=True)
class Unique:
    """A list without repetition: of whole items, or of their `key`. To server-side apply it is a set or a map."""

    key: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        list_type = (
            {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}
            if self.key
            else {"x-kubernetes-list-type": "set"}
        )
        return {**handler(schema), **list_type}

    def _check(self, items: Sequence[Any]) -> Sequence[Any]:
        values = [getattr(item, self.key) if self.key else item for item in items]
        for value in values:
            if values.count(value) > 1:
                what = f"the {self.key} {value}" if self.key else str(value)
                raise PydanticCustomError("repeated", "gives {what} more than once", {"what": what})
        return items


Quantity = Annotated[str, _Quantity()]
Uri = Annotated[str, _Uri()]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL_PATTERN)]
DnsSubdomain = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN_PATTERN)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE_PATTERN)]
ExtendedResource = Annotated[str, Field(min_length=1, max_length=317, pattern=EXTENDED_RESOURCE_PATTERN)]
ColumnName = Annotated[str, Field(min_length=1, max_length=128)]
Fraction = Annotated[float, Decimal(ge=0, le=1)]
OpenFraction = Annotated[float, Decimal(gt=0, lt=1)]
NonNegative = Annotated[float, Decimal(ge=0)]
Positive = Annotated[float, Decimal(gt=0)]
