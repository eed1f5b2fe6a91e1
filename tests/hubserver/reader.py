"""Reads from a hub in a process of its own, because the hub's libraries read their settings when they are imported.

Requests and answers are lines of JSON: {"call": "model" or "dataset", "source": {...}, "environment": {...}}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.v1alpha1.sources import DataSource, ModelSource
from finetune_trainer.data import hub
from finetune_trainer.data.sources import EVALUATION_SPLITS, TRAIN_SPLITS
from finetune_trainer.errors import TrainerError

_SPLITS = {"train": TRAIN_SPLITS, "evaluation": EVALUATION_SPLITS}
_hosts: set[str] = set()


def main() -> None:
    """Answer requests until there are no more."""
    logging.basicConfig(level=logging.INFO)  # as the trainer does
    sys.addaudithook(_note_host)
    for line in sys.stdin:
        request = json.loads(line)
        _hosts.clear()
        with _environment(request.get("environment", {})):
            answer = _answer(request)
        print(json.dumps({**answer, "hosts": sorted(_hosts)}), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["call"] == "model":
            directory = hub.download_model(ModelSource.model_validate(request["source"]))
            files = sorted(str(path.relative_to(directory)) for path in _files(directory))
            return {"directory": str(directory), "files": files}
        rows = hub.read_dataset(DataSource.model_validate(request["source"]), _SPLITS[request.get("splits", "train")])
        return {"rows": [[row.place, row.values] for row in rows]}
    except TrainerError as error:
        return {"error": {"code": error.code.name, "message": error.message, "hint": error.hint}}
    except Exception as error:
        return {"crash": repr(error)}


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _note_host(event: str, arguments: tuple[Any, ...]) -> None:
    """Every name that is looked up and every address that is connected to."""
    if event == "socket.getaddrinfo":
        _hosts.add(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _hosts.add(str(arguments[1][0]))


if __name__ == "__main__":
    main()
