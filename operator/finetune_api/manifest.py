"""Reads manifests: YAML or JSON documents into FineTuneJobs, or into problems with the line they are on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api.problems import Problem, problems_of
from finetune_api.support import unsupported
from finetune_api.v1alpha1 import API_VERSION, KIND, FineTuneJob


class ManifestInvalid(Exception):
    """The manifest cannot be used. `problems` says why, each with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates: JSON has none, and `kubectl` reads them as strings too."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class _Document:
    content: Any
    lines: dict[str, int]
    """The line of each JSON path."""


def load_jobs(path: Path) -> list[FineTuneJob]:
    """
    Every FineTuneJob in a file; documents of another kind are passed over.

    Raises ManifestInvalid if the file cannot be read, is no YAML, holds no FineTuneJob or an invalid one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ManifestInvalid([f"{path}: cannot be read: {reason}"]) from None
    problems: list[str] = []
    jobs: list[FineTuneJob] = []
    try:
        documents = [document for document in _documents(text) if _is_job(document.content)]
    except yaml.YAMLError as error:
        raise ManifestInvalid([_yaml_problem(path, error)]) from None
    for document in documents:
        try:
            jobs.append(parse_job(document.content))
        except ValidationError as error:
            problems += [_placed(path, document, problem) for problem in problems_of(error)]
        else:
            problems += [_placed(path, document, problem) for problem in unsupported(jobs[-1].spec)]
    if not documents:
        problems.append(f"{path}: no {KIND} in this file (expected apiVersion: {API_VERSION} and kind: {KIND})")
    if problems:
        raise ManifestInvalid(problems)
    return jobs


def parse_job(content: Any) -> FineTuneJob:
    """A FineTuneJob from a manifest's JSON value; raises pydantic's ValidationError. No value is coerced."""
    return FineTuneJob.model_validate_json(json.dumps(content), strict=True, by_alias=True, by_name=False)


def _is_job(content: Any) -> bool:
    """Whether this is meant to be a FineTuneJob: a wrong apiVersion or a missing kind is then told, not passed over."""
    if not isinstance(content, dict):
        return content is not None
    group = str(content.get("apiVersion", "")).split("/")[0]
    return content.get("kind", KIND) == KIND or group == API_VERSION.split("/")[0]


def _documents(text: str) -> Iterator[_Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            lines: dict[str, int] = {}
            _note_lines(node, "", lines)
            yield _Document(loader.construct_document(node), lines)
    finally:
        loader.dispose()


def _note_lines(node: yaml.Node | None, path: str, lines: dict[str, int]) -> None:
    """Record the line of every path below a node; a key given twice is an error, as it is to the API server."""
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
            child = f"{path}.{key.value}" if path else str(key.value)
            lines[child] = key.start_mark.line + 1
            _note_lines(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, f"{path}[{index}]", lines)


def _placed(path: Path, document: _Document, problem: Problem) -> str:
    place = problem.field
    while place and place not in document.lines:
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    return f"{path}:{document.lines.get(place, 1)}: {problem}"


def _yaml_problem(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    return f"{path}:{mark.line + 1}: not valid YAML: {what}" if mark else f"{path}: not valid YAML: {what}"
