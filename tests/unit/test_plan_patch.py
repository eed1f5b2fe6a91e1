"""The merge patch says exactly what differs, judged by RFC 7386's own algorithm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.plan.patch import merge_patch
from memory_cluster import apply_merge_patch

_SCALARS = st.one_of(st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
_OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), _SCALARS, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.one_of(_SCALARS, inner), max_size=3),
    max_leaves=8,
)


@given(_OBJECTS, _OBJECTS)
def test_the_patch_turns_one_object_into_the_other(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    assert apply_merge_patch(earlier, merge_patch(earlier, later)) == later


@given(_OBJECTS)
def test_the_same_object_needs_no_patch(same: dict[str, Any]) -> None:
    assert merge_patch(same, same) == {}


@pytest.mark.parametrize(
    ("earlier", "later", "patch"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {}, {"a": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
        ({"a": {"b": 1}}, {"a": 5}, {"a": 5}),
    ],
)
def test_only_what_differs_is_in_the_patch(
    earlier: dict[str, Any], later: dict[str, Any], patch: dict[str, Any]
) -> None:
    assert merge_patch(earlier, later) == patch
