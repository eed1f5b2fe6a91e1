"""Reads SQuAD's JSON files (versions 1.1 and 2.0): articles of paragraphs of questions, as one row a question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

Question = tuple[str, dict[str, Any]]
"""Where it is, and its columns: question, context and answers as {text: [...], answer_start: [...]}."""


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a file. Raises TrainerError (DATA_INVALID) naming the file and the place in it."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            content = json.load(file)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise TrainerError(
                ExitCode.DATA_INVALID,
                f"{path}: not valid JSON: {reason[:200]}",
                "a .json file holds SQuAD's nested form; write rows, one object a line, as .jsonl",
            ) from None
    try:
        for article_number, article in enumerate(content["data"], start=1):
            for paragraph_number, paragraph in enumerate(article["paragraphs"], start=1):
                for number, entry in enumerate(paragraph["qas"], start=1):
                    place = f"article {article_number} paragraph {paragraph_number} question {number}"
                    yield place, _columns(entry, paragraph["context"])
    except (KeyError, TypeError, AttributeError):
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f'{path}: not SQuAD\'s form, {{"data": [{{"paragraphs": [{{"context": ..., "qas": [...]}}]}}]}}',
            "write it so, or write rows, one object a line, as .jsonl",
        ) from None


def _columns(entry: dict[str, Any], context: Any) -> dict[str, Any]:
    # An unanswerable question of version 2.0 has no answers, and "plausible" ones beside them.
    answers = None
    if "answers" in entry:
        given = [] if entry.get("is_impossible") else entry["answers"]
        answers = {name: [answer[name] for answer in given] for name in ("text", "answer_start")}
    return {"id": entry.get("id"), "question": entry["question"], "context": context, "answers": answers}
