"""Reads YAML (and JSON) documents to the values that kubectl reads them to, each with its line; writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

_MOST_VALUES = 100_000
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_OLD_OCTAL = re.compile(r"[-+]?0[0-7]+")
_BLANKS, _LINE_BREAKS = " \t", "\r\n\x85\u2028\u2029"
_TRUE, _FALSE = ("y", "yes", "true", "on"), ("n", "no", "false", "off")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file."""

    content: Any
    """A JSON value."""
    lines: dict[str, int]
    """The line of each JSON path, such as `spec.strategy.adapter.stackOn[0].uri`; the document's own is ""."""


def read_documents(text: str) -> Iterator[Document]:
    """Every document of a YAML or JSON text. Raises yaml.YAMLError, with a mark where there is one place."""
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON may be indented by tabs, YAML may not
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            lines: dict[str, int] = {}
            _note_lines(node, "", lines, frozenset())
            yield Document(loader.construct_document(node), lines)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def write_document(content: Any) -> str:
    """A JSON value as YAML that `read_documents` and kubectl read back to the same: "2e-05" stays a string."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of kubectl: no dates, no base 60, `2e-4` is a number; and JSON's types only.

    A tab separates words as a space does, but does not indent.
    """

    yaml_constructors: ClassVar[Any] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, *(f"tag:yaml.org,2002:{name}" for name in ("null", "seq", "map")))
    }

    def scan_to_next_token(self) -> None:
        """Pass over what separates tokens; a tab at the beginning of a line is left, and refused."""
        while self.peek() in _BLANKS and (self.peek() == " " or self.flow_level or not self.allow_simple_key):
            self.forward()
        super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> Any:
        """What stands between two words of a text without quotes, if they are of one text."""
        length = 0
        while self.peek(length) in _BLANKS:
            length += 1
        blanks = self.prefix(length)
        self.forward(length)
        if self.peek() in _LINE_BREAKS:
            return super().scan_plain_spaces(indent, start_mark)
        return [blanks] if blanks else []


_Loader.yaml_implicit_resolvers = {}


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    """Text; JSON escapes a character beyond U+FFFF as two halves, which are put together here."""
    try:
        return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise yaml.MarkedYAMLError(problem="half a Unicode character", problem_mark=node.start_mark) from None


def _construct_bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    word = str(node.value).lower()
    if word not in (*_TRUE, *_FALSE):
        raise yaml.MarkedYAMLError(problem=f"{node.value!r} is not a boolean", problem_mark=node.start_mark)
    return word in _TRUE


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> int | float | str:
    """A number as Go reads it. What only looks like one (`0x`, `1e400`) is a string."""
    text = str(node.value).replace("_", "")
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        raise yaml.MarkedYAMLError(problem=f"{node.value} is not a JSON number", problem_mark=node.start_mark)
    try:
        number = int(text, 8 if _OLD_OCTAL.fullmatch(text) else 0)
        if -(2**63) <= number < 2**64:
            return number if number < 2**63 else float(number)
    except ValueError:
        pass
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return str(node.value)


def _words(*words: str) -> str:
    return "|".join(spelling for word in words for spelling in (word, word.capitalize(), word.upper()))


for _tag, _pattern, _first in (
    ("null", f"~|{_words('null')}", "~nN"),
    ("bool", _words(*_TRUE, *_FALSE), "yYnNtTfFoO"),
    ("float", r"[-+]?[0-9.][-+0-9a-zA-Z_.]*", "-+.0123456789"),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^({_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)
_Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_number)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what the loader above would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value again rather than refer to it."""
        return True


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _expression in _resolvers:  # after SafeDumper's own, which tell integers from floats
        _Dumper.add_implicit_resolver(_tag, _expression, [_first])


def _note_lines(node: yaml.Node | None, path: str, lines: dict[str, int], above: frozenset[int]) -> None:
    """Record the line of every path below a node; a key given twice is an error, as it is to the API server."""
    if node is None:
        return
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
    if len(lines) >= _MOST_VALUES:  # aliases of aliases make billions of values of a few lines
        raise yaml.YAMLError(f"it has more than {_MOST_VALUES} values")
    lines.setdefault(path, node.start_mark.line + 1)
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = _key_of(key)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is given twice", problem_mark=key.start_mark)
            seen.add(name)
            child = f"{path}.{name}" if path else name
            lines[child] = key.start_mark.line + 1
            _note_lines(value, child, lines, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, f"{path}[{index}]", lines, above)


def _key_of(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
    return str(key.value)
