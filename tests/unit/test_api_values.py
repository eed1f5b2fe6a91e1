"""Decimals, quantities, URIs and unique lists: what is taken, what is refused, and what comes back."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from finetune_api.base import Contract
from finetune_api.values import (
    DECIMAL_PATTERN,
    QUANTITY_PATTERN,
    Decimal,
    DnsSubdomain,
    ExtendedResource,
    Fraction,
    LabelKey,
    NonNegative,
    OpenFraction,
    Positive,
    Quantity,
    Unique,
    Uri,
    finite_or_none,
)


class Values(Contract):
    """One field of each type."""

    number: Annotated[float, Decimal()] | None = None
    fraction: Fraction | None = None
    open: OpenFraction | None = None
    non_negative: NonNegative | None = None
    positive: Positive | None = None
    quantity: Quantity | None = None
    uri: Uri | None = None
    name: DnsSubdomain | None = None
    label_key: LabelKey | None = None
    resource: ExtendedResource | None = None
    words: Annotated[tuple[str, ...], Unique()] = ()
    parts: Annotated[tuple[Part, ...], Unique("name")] = ()


class Part(Contract):
    """An item with a key."""

    name: str
    size: int = 0


def read(**fields: Any) -> Values:
    """As a manifest is read."""
    return Values.model_validate_json(json.dumps(fields), strict=True, by_alias=True, by_name=False)


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        read(**fields)
    return refused.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("0.1", 0.1), ("1", 1.0), ("-3.5", -3.5), ("+1", 1.0), ("007", 7.0), ("1E3", 1000.0), ("-0", 0.0)],
)
def test_decimal_strings_are_read(text: str, value: float) -> None:
    assert read(number=text).number == value


@pytest.mark.parametrize(
    "text",
    ["nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400", "", " 1", "1 ", "1\n", ".5", "5.", "1_0", "0x1", "1,5",
     "\u0661", "1e", "1e1000", "--1", "0." + "1" * 24],
)  # fmt: skip
def test_what_is_no_finite_decimal_is_refused(text: str) -> None:
    assert refusal(number=text)


@pytest.mark.parametrize("number", [0.1, 1, True, -1.5])
def test_numbers_are_refused_in_manifests_and_taken_from_code(number: Any) -> None:
    assert "valid string" in refusal(number=number)
    if not isinstance(number, bool):
        assert Values(number=number).number == number


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, True, "nan", "1_0", " 1 "])
def test_code_cannot_smuggle_in_what_a_manifest_may_not_say(number: Any) -> None:
    with pytest.raises(ValidationError):
        Values(number=number)


@pytest.mark.parametrize(
    ("field", "inside", "outside", "allowed"),
    [
        ("fraction", ["0", "1", "0.5"], ["-1e-300", "1.0000000000000002"], ">= 0 and <= 1"),
        ("open", ["1e-300", "0.9999999999999999"], ["0", "1", "-0"], "> 0 and < 1"),
        ("nonNegative", ["0", "1e308", "-0"], ["-1e-300"], ">= 0"),
        ("positive", ["5e-324", "1e308"], ["0", "-1", "1e-400"], "> 0"),
    ],
)
def test_bounds_are_exact_and_named(field: str, inside: list[str], outside: list[str], allowed: str) -> None:
    for text in inside:
        read(**{field: text})
    for text in outside:
        assert refusal(**{field: text}) == f"must be a number {allowed}"


@settings(deadline=None)  # another process may have the machine
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_goes_out_as_a_decimal_and_comes_back(number: float) -> None:
    text = Values(number=number).to_json()["number"]
    assert re.fullmatch(DECIMAL_PATTERN, text)
    assert len(text) <= 24
    assert read(number=text).number == number


DIGITS = st.text("0123456789", min_size=1, max_size=8)
DECIMALS = st.tuples(
    st.sampled_from(["", "+", "-"]),
    DIGITS,
    st.just("") | DIGITS.map(lambda digits: f".{digits}"),
    st.just("") | st.integers(-999, 999).map(lambda exponent: f"e{exponent}"),
).map("".join)


@settings(deadline=None)  # another process may have the machine
@given(DECIMALS)
def test_what_the_schema_accepts_is_read_or_too_large(text: str) -> None:
    assert re.fullmatch(DECIMAL_PATTERN, text)
    if math.isfinite(float(text)):
        assert read(number=text).number == float(text)
    else:
        assert refusal(number=text) == "must be finite"


@settings(deadline=None)  # another process may have the machine
@given(st.text(max_size=24))
def test_no_text_beyond_the_pattern_is_read_as_a_decimal(text: str) -> None:
    try:
        read(number=text)
    except ValidationError:
        return
    assert re.fullmatch(DECIMAL_PATTERN, text)


def test_non_finite_numbers_become_absent() -> None:
    assert [finite_or_none(value) for value in (1.5, None, math.nan, math.inf, -math.inf)] == [
        1.5,
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [
        ("16Gi", "16Gi"),
        ("500m", "500m"),
        ("0.5", "0.5"),
        ("0.001Ki", "0.001Ki"),
        ("10", "10"),
        (2, "2"),
        ("1.0", "1.0"),
    ],
)
def test_quantities_are_kept_as_text(given_value: Any, kept: str) -> None:
    assert read(quantity=given_value).to_json() == {"quantity": kept, "words": [], "parts": []}


@pytest.mark.parametrize(
    "value", ["", "0", "0.0", "00Gi", "-1", "+1", "1e3", "16GB", "16gi", "1.", ".5", "1 Gi", "1\n", 0, -1, 1.5, True,
              2**63, "1" * 25, "much"],
)  # fmt: skip
def test_what_is_no_quantity_above_zero_is_refused(value: Any) -> None:
    assert "quantity" in refusal(quantity=value)


@settings(deadline=None)  # another process may have the machine
@given(st.from_regex(QUANTITY_PATTERN, fullmatch=True).filter(lambda text: len(text) <= 24))
def test_every_quantity_of_the_schema_is_more_than_zero(text: str) -> None:
    assert read(quantity=text).quantity == text
    assert float(text.rstrip("mkKMGTPi")) > 0 or re.search("[1-9]", text)


@pytest.mark.parametrize(
    "uri",
    ["hf://owner/name", "hf://gpt2", "hf://datasets/owner/name", "hf://datasets/imdb", "pvc://claim", "pvc://claim/a/b",
     "pvc://my.claim/x", "s3://bucket/a", "https://example.com/x.jsonl", "https://example.com:8443/x", "file:///a/b",
     "file://relative/path", "file:///a/..b/c..", "file:///a/.../b", "file:///été/日本", "pvc://claim/."],
)  # fmt: skip
def test_uris_are_taken_as_they_are(uri: str) -> None:
    assert read(uri=uri).uri == uri


@pytest.mark.parametrize(
    "uri",
    ["file:///..", "file://..", "file://../x", "file:///a/../b", "pvc://claim/..", "pvc://claim/../other", "s3://bucket/..",
     "https://host/a/../b", "pvc://claim/a/.."],
)  # fmt: skip
def test_a_step_up_is_refused_in_every_uri(uri: str) -> None:
    assert 'must not contain ".." as a path segment' in refusal(uri=uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://../x", "path segment"),
        ("pvc:///etc/passwd", "pvc://claim/path"),
        ("pvc://Claim/x", "pvc://claim/path"),
        ("hf://a/b/c", "hf://owner/name"),
        ("hf://../../x", "path segment"),
        ("hf://datasets/", "hf://datasets/owner/name"),
        ("hf://a/b/", "hf://owner/name"),
        ("s3:///key", "s3://bucket/path"),
        ("https:///x", "https://host/path"),
        ("https://user:word@host/x", "without a user or password"),
        ("ftp://host/x", "starts with"),
        ("/absolute/path", "starts with"),
        ("file://", "starts with"),
        ("file:///a b", "without spaces"),
        ("file:///a\n", "without spaces"),
        ("file:///a\x00", "without spaces"),
        ("file:///a?x=1", "'?'"),
        ("file:///a#x", "'#'"),
        ("", "at least 1 character"),
        ("file:///" + "x" * 1017, "at most 1024 characters"),
    ],
)
def test_wrong_uris_are_refused_with_the_reason(uri: str, reason: str) -> None:
    assert reason in refusal(uri=uri)


@settings(deadline=None)  # another process may have the machine
@given(st.text("/.ab%é\\\n\x00 ", max_size=12))
def test_no_path_with_a_step_up_or_a_control_character_gets_through(path: str) -> None:
    try:
        uri = read(uri=f"pvc://claim/{path}").uri
    except ValidationError:
        return
    assert uri is not None
    assert ".." not in uri.removeprefix("pvc://").split("/")
    assert min(uri) > " "


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "a.b-c.d"), ("labelKey", "example.com/Zone_a"), ("labelKey", "a" * 63), ("resource", "nvidia.com/gpu")],
)
def test_names_of_kubernetes_are_taken(field: str, value: str) -> None:
    assert read(**{field: value}).to_json()[field] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "A"), ("name", "a..b"), ("name", "-a"), ("name", "a-"), ("name", "a" * 254), ("name", "a\n"),
        ("labelKey", "a" * 64), ("labelKey", "/a"), ("labelKey", "a/b/c"), ("labelKey", "A.com/b"),
        ("labelKey", "a..b/c"),
        ("resource", "cpu"), ("resource", "gpu"), ("resource", "nvidia.com/"),
    ],
)  # fmt: skip
def test_what_kubernetes_would_refuse_later_is_refused_now(field: str, value: str) -> None:
    assert refusal(**{field: value})


def test_repeated_items_are_refused_and_named() -> None:
    assert read(words=["a", "b"]).words == ("a", "b")
    assert refusal(words=["a", "b", "a"]) == "gives a more than once"
    assert refusal(parts=[{"name": "x"}, {"name": "x", "size": 1}]) == "gives the name x more than once"


class Bounded(Contract):
    """A unique list keeps the bounds that stand beside it."""

    words: Annotated[tuple[str, ...], Field(max_length=2), Unique()] = ()


def test_unique_lists_keep_their_bounds() -> None:
    schema = Bounded.model_json_schema()["properties"]["words"]
    assert schema["maxItems"] == 2
    assert schema["x-kubernetes-list-type"] == "set"
    with pytest.raises(ValidationError):
        Bounded(words=("a", "b", "c"))
