"""Reads manifests: documents into FineTuneJobs, or into problems with the line they are on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from finetune_api.base import Contract, models_in
from finetune_api.documents import Document, read_documents
from finetune_api.problems import Problem, printable, problems_of
from finetune_api.v1alpha1 import API_VERSION, KIND, FineTuneJob, FineTuneJobSpec

_Model = TypeVar("_Model", bound=Contract)


class ManifestInvalid(Exception):
    """The manifest cannot be used. `problems` says why, each with its place; as text they are a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(map(printable, problems)))
        self.problems = problems


def load_jobs(path: Path) -> list[FineTuneJob]:
    """Every FineTuneJob in a file, also those in a list as kubectl prints it; objects of another kind are passed over.

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
        objects = [each for document in read_documents(text) for each in _objects(document)]
    except yaml.YAMLError as error:
        raise ManifestInvalid([_yaml_problem(path, text, error)]) from None
    documents = [each for each in objects if _is_job(each.content)]
    for document in documents:
        try:
            jobs.append(parse_job(document.content))
        except ValidationError as error:
            problems += [_placed(path, document, problem) for problem in problems_of(error)]
    if not documents:
        problems.append(f"{path}: no {KIND} in this file (expected apiVersion: {API_VERSION} and kind: {KIND})")
    if problems:
        raise ManifestInvalid(problems)
    return jobs


def parse_job(content: Any) -> FineTuneJob:
    """A FineTuneJob from a manifest's JSON value, judged as the API server judges it.

    No value is coerced, and `status` is not looked at. Raises pydantic's ValidationError.
    """
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "status"}
    return _validated(FineTuneJob, content)


def parse_spec(content: Any) -> FineTuneJobSpec:
    """A FineTuneJob's spec, judged likewise; the places in the ValidationError start with `spec`."""
    return _validated(_SpecOnly, {"spec": content}).spec


class _SpecOnly(Contract):
    spec: FineTuneJobSpec


def _validated(model: type[_Model], content: Any) -> _Model:
    text = json.dumps(_as_stored(content, model))
    return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)


def _as_stored(value: Any, annotation: Any) -> Any:
    """A value as the API server stores it: a field that is null is absent, and 3.0 is the integer 3."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_as_stored(item, annotation) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {field.alias: field.annotation for model in models_in(annotation) for field in model.model_fields.values()}
    return {
        key: _as_stored(item, fields.get(key))
        for key, item in value.items()
        if item is not None or (fields and key not in fields)  # an unknown field is an error even when it is null
    }


def _objects(document: Document) -> Iterator[Document]:
    """The document; of a list of objects, each of them with its own lines."""
    content = document.content
    is_list = isinstance(content, dict) and content.get("kind") in ("List", f"{KIND}List")
    if not (is_list and isinstance(content.get("items"), list)):
        yield document
        return
    lines: dict[str, dict[str, int]] = {}
    for path, line in document.lines.items():
        item, _, below = path.partition(".")
        lines.setdefault(item, {})[below] = line
    for index, item in enumerate(content["items"]):
        yield Document(item, lines.get(f"items[{index}]", {}))


def _is_job(content: Any) -> bool:
    """Whether this is meant to be a FineTuneJob: a wrong apiVersion or a missing kind is then told, not passed over."""
    if not isinstance(content, dict):
        return content is not None
    group = str(content.get("apiVersion", "")).split("/")[0]
    return content.get("kind", KIND) == KIND or group == API_VERSION.split("/")[0]


def _placed(path: Path, document: Document, problem: Problem) -> str:
    place = problem.field
    while place and place not in document.lines:
        place = place[: max(place.rfind("."), place.rfind("["), 0)]
    return f"{path}:{document.lines.get(place, 1)}: {problem}"


def _yaml_problem(path: Path, text: str, error: yaml.YAMLError) -> str:
    what = getattr(error, "problem", None) or str(error)
    what += "; write spaces instead of the tab" if r"'\t'" in what else ""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.reader.ReaderError):  # it counts characters, not lines
        line = text.count("\n", 0, error.position) + 1
        return f"{path}:{line}: not valid YAML: the character {chr(error.character)!r} is not allowed"
    return f"{path}:{mark.line + 1}: not valid YAML: {what}" if mark else f"{path}: not valid YAML: {what}"
