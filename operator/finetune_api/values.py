"""Scalar types of the contract: decimal strings, quantities, URIs and names, each with its JSON schema."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

DECIMAL_PATTERN = r"^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"


@dataclass(frozen=True, slots=True)
class Decimal:
    """
    A finite number written as a string ("2e-4"), a `float` in Python.

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
        from_number = core_schema.no_info_after_validator_function(self._check, core_schema.float_schema())
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema([from_number, from_text], mode="left_to_right"),
            serialization=core_schema.plain_serializer_function_ser_schema(_decimal_text, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        json_schema: dict[str, Any] = {"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 24}
        if bounds := self._bounds():
            json_schema["x-kubernetes-validations"] = [
                {
                    "rule": " && ".join(f"double(self) {sign} {float(limit)!r}" for sign, limit in bounds),
                    "message": f"must be a number {self._allowed()}",
                }
            ]
        return json_schema

    def _bounds(self) -> list[tuple[str, float]]:
        limits = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        return [(sign, limit) for sign, limit in limits if limit is not None]

    def _allowed(self) -> str:
        return " and ".join(f"{sign} {limit:g}" for sign, limit in self._bounds())

    def _parse(self, text: str) -> float:
        if not re.match(DECIMAL_PATTERN, text):
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
    """A Kubernetes quantity: a string with a unit, or a plain integer (kept as its string)."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(pattern=QUANTITY_PATTERN, max_length=24, strict=True)
        number = core_schema.no_info_after_validator_function(str, core_schema.int_schema(ge=0, strict=True))
        return core_schema.union_schema(
            [text, number],
            mode="left_to_right",
            custom_error_type="quantity",
            custom_error_message='must be a quantity such as 2, "500m" or "16Gi"',
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN}


URI_PATTERN = r"^(hf|pvc|s3|file|https)://[^\s?#]+$"
_PARENT_SEGMENT = r"(^|/)\.\.(/|$)"


class _Uri:
    """Where something is: hf://, pvc://, s3://, file:// or https://, without a step up ("..")."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self._check, core_schema.str_schema(min_length=1, max_length=1024, strict=True)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # Go's regular expressions have no look-ahead, so the forbidden segment is a rule of its own.
        return {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": URI_PATTERN,
            "x-kubernetes-validations": [
                {
                    "rule": f"!self.matches('{_PARENT_SEGMENT.replace(chr(92), chr(92) * 2)}')",
                    "message": 'must not contain ".." as a path segment',
                }
            ],
        }

    @staticmethod
    def _check(uri: str) -> str:
        if not re.match(URI_PATTERN, uri):
            raise PydanticCustomError(
                "uri",
                "must be a URI that starts with hf://, pvc://, s3://, file:// or https://, without spaces, '?' or '#'",
            )
        if re.search(_PARENT_SEGMENT, uri):
            raise PydanticCustomError("uri", 'must not contain ".." as a path segment')
        return uri


_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

Quantity = Annotated[str, _Quantity()]
Uri = Annotated[str, _Uri()]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
LabelKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=_LABEL_KEY,
    ),
]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
ColumnName = Annotated[str, Field(min_length=1, max_length=128)]
Fraction = Annotated[float, Decimal(ge=0, le=1)]
OpenFraction = Annotated[float, Decimal(gt=0, lt=1)]
NonNegative = Annotated[float, Decimal(ge=0)]
Positive = Annotated[float, Decimal(gt=0)]
