"""The base of every contract model: closed, immutable, camelCase outside, with rules told once for pydantic and CEL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

GROUP = "finetune-operator.io"


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition across fields, in the two languages that check it.

    `cel` goes into the CRD, where the API server evaluates it; `holds` is the same condition in Python, for
    `finetune validate` and as the operator's second guard. The tests run both over the same manifests.
    `field` is the JSON path below the model that an error is attributed to ("" is the model itself).
    A rule with `holds=None` is a transition rule (it needs `oldSelf`), which only the API server can judge.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None
    field: str = ""


class Contract(BaseModel):
    """A part of a manifest. Unknown fields are errors, and instances never change."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            if rule.holds is not None and not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "field": rule.field})
        return self

    def to_json(self) -> dict[str, Any]:
        """The JSON object as it stands in a manifest: camelCase, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def models_in(annotation: Any) -> list[type[Contract]]:
    """The models that a field's annotation names, through Optional, Annotated, tuples and maps."""
    if isinstance(annotation, type) and issubclass(annotation, Contract):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in models_in(part)]
