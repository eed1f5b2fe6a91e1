"""YAML is read to JSON values with lines, and what has no JSON value is refused where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.documents import read_documents


def contents(text: str) -> list[Any]:
    return [document.content for document in read_documents(text)]


def test_every_value_has_its_line() -> None:
    text = """\
# a comment
spec:
  model: {uri: x,
    revision: y}
  list:
    - a
    - key: b
      other: |
        more
        lines
  "quoted.key": 1
---
second: 2
"""
    first, second = read_documents(text)
    assert first.lines == {
        "": 2, "spec": 2, "spec.model": 3, "spec.model.uri": 3, "spec.model.revision": 4, "spec.list": 5,
        "spec.list[0]": 6, "spec.list[1]": 7, "spec.list[1].key": 7, "spec.list[1].other": 8, "spec.quoted.key": 11,
    }  # fmt: skip
    assert second.lines == {"": 13, "second": 13}
    assert second.content == {"second": 2}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("2e-4", 0.0002),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("3", 3),
        ("0x1F", 31),
        ("017", 15),
        ("1e400", "1e400"),
        ("0xFFFFFFFFFFFFFFFF", 2.0**64),
        ("0x10000000000000000", "0x10000000000000000"),
        ("0x" + "f" * 5000, "0x" + "f" * 5000),
        ("18446744073709551616", 2.0**64),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("yes", True),
        ("off", False),
        ("tRue", "tRue"),
        ("", None),
        ("~", None),
        ("=", "="),
        ("9" * 5000, "9" * 5000),
        ('"2e-4"', "2e-4"),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(word: str, value: Any) -> None:
    [content] = contents(f"key: {word}")
    assert content == {"key": value}
    assert isinstance(content["key"], bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ('a: {b: 1, "b": 2}', "the key 'b' is given twice"),
        ("? [a, b]\n: c", "a key must be a word"),
        ("? {a: b}\n: c", "a key must be a word"),
        ("a: &x [*x]", "an alias stands inside what it names"),
        ("a: &x {b: *x}", "an alias stands inside what it names"),
        ("a: .nan", ".nan is not a JSON number"),
        ("a: -.INF", "-.INF is not a JSON number"),
        ("a: !!bool maybe", "'maybe' is not a boolean"),
        ('a: "\\ud800"', "half a Unicode character"),
        ("a: !custom b", "could not determine a constructor for the tag '!custom'"),
        ("a: !!python/object:os.system b", "could not determine a constructor"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: !!timestamp 2026-01-01", "could not determine a constructor"),
        ("a: !!set {b, c}", "could not determine a constructor"),
        ("a: [", "expected the node content"),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: *nowhere", "found undefined alias"),
        ("\ta: b", "found character '\\t' that cannot start any token"),
        ("a: b\n\tc: d", "found character '\\t' that cannot start any token"),
        ("a:\n\t- b", "found character '\\t' that cannot start any token"),
        ("-\ta", "found character '\\t' that cannot start any token"),
    ],
)
def test_what_is_no_json_value_is_refused_at_its_line(text: str, problem: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as refused:
        contents(f"# first line\n{text}")
    assert refused.value.problem is not None
    assert problem in refused.value.problem
    assert refused.value.problem_mark is not None
    assert refused.value.problem_mark.line >= 1


def test_aliases_of_aliases_end_in_an_error_before_memory_does() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(yaml.YAMLError, match="more than 100000 values"):
        contents("\n".join(lines))


def test_bottomless_nesting_is_an_error() -> None:
    with pytest.raises(yaml.YAMLError, match="nested too deeply"):
        contents("[" * 1_000)


def test_plain_aliases_and_merges_are_followed() -> None:
    text = "base: &base {a: 1, b: 2}\nsame: *base\nmerged: {<<: *base, b: 3}"
    assert contents(text) == [{"base": {"a": 1, "b": 2}, "same": {"a": 1, "b": 2}, "merged": {"a": 1, "b": 3}}]


@pytest.mark.parametrize(
    "text",
    ["key: a b\t# comment", "key: a b\t \t", "key:\ta b", "key\t: a b", '"key": "a b"\t# comment', "{key:\ta b\t}\t",
     "key:\t\n  a b", "key: a\t\n  b", "# comment\nkey: &x\ta b\n# another\t"],
)  # fmt: skip
def test_tabs_between_words_are_spaces(text: str) -> None:
    assert contents(text) == [{"key": "a b"}]


def test_tabs_within_words_stay() -> None:
    assert contents("a: b\tc\nd: 'e\tf'\ng: |\n  h\ti") == [{"a": "b\tc", "d": "e\tf", "g": "h\ti"}]


def test_json_may_be_indented_by_tabs() -> None:
    value = {"a": [1, 2.5, "x", None, True, {"b": "é😀"}]}
    assert contents(json.dumps(value, indent="\t")) == [value]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcXYZ.-_", min_size=1), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None)  # another process may have the machine
@given(st.dictionaries(st.text("abc", min_size=1), JSON))
def test_every_json_object_is_read_as_json_says(value: dict[str, Any]) -> None:
    assert contents(json.dumps(value)) == [value]
