"""Writes data files, and looks at how reading them fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.errors import TrainerError

_DISTILLATION = {"teacher": {"uri": "file:///nowhere"}, "response": {}}


def write(path: Path, content: str | bytes) -> Path:
    """A file with this content, to the byte."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """A JSON value a line."""
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def labelled(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Rows from pairs of text and label."""
    return [{"text": text, "label": label} for text, label in pairs]


def run_on(
    train: Path,
    evaluation: Path | None = None,
    *,
    model: Path = Path("/nowhere"),
    task: str = "TextClassification",
    retention: Path | None = None,
    **data: Any,
) -> Run:
    """A run over files; `data` are further fields of spec.data."""
    sources: dict[str, Any] = {"train": {"uri": f"file://{train}"}}
    if evaluation is not None:
        sources["evaluation"] = {"uri": f"file://{evaluation}"}
    spec = {
        "task": task,
        "model": {"uri": f"file://{model}"},
        "data": sources | data,
        # Only a teacher can make use of rows without labels.
        "strategy": {"distillation": _DISTILLATION} if "unlabeled" in data else {"full": {}},
        "output": {"uri": "file:///nowhere"},
        "evaluation": {"retention": {"data": {"uri": f"file://{retention}"}}} if retention else {},
    }
    return Run.model_validate_json(json.dumps({"name": "job", "uid": "1", "spec": spec, "workDir": "/nowhere"}))


def failure(code: ExitCode, function: Callable[..., Any], *arguments: Any) -> str:
    """The sentence and the hint that a call ends in; both have to be fit to be read in a terminal."""
    with pytest.raises(TrainerError) as caught:
        function(*arguments)
    error = caught.value
    assert error.code is code
    assert error.hint
    for text in (error.message, error.hint):
        assert "\n" not in text
        assert len(text) <= 700
    # Whatever it came from is not shown: a traceback has no place in a user's mistake.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return f"{error.message} ({error.hint})"
