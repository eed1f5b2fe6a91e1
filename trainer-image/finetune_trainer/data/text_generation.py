"""Rows to texts, prompts with completions, instructions or chats: told apart by their columns, and checked."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.chats import read_chat
from finetune_trainer.data.columns import (
    SHARED_COLUMNS,
    is_unicode,
    named,
    optional_in,
    optional_text_in,
    parsed,
    text_in,
)
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.generation_rows import GenerationRow, Instruction, PlainText, PromptCompletion
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.rows import load as load_rows
from finetune_trainer.errors import TrainerError

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Form:
    """How one form of rows is told, and what is said of it."""

    columns: tuple[str, ...]
    """A row that has one of them is of this form; where several compete, one that has all."""
    fields: tuple[str, ...]
    """Those of data.columns that belong to no other form."""
    choice: str
    """How data.columns chooses it."""
    shared: tuple[str, ...] = ()
    """Those of data.columns that belong to it, and to others."""


_SHARED = ("tools", "system")
_FORMS = {
    "text": _Form(("text",), ("text",), "text: text"),
    "prompt and completion": _Form(("prompt", "completion"), ("prompt", "completion"), "prompt: prompt"),
    "messages": _Form(("messages",), ("messages",), "messages: messages", _SHARED),
    "conversations": _Form(("conversations",), (), "messages: conversations", _SHARED),
    "instruction and output": _Form(
        ("instruction", "output"), ("instruction", "input", "output"), "instruction: instruction", ("system",)
    ),
}


def load(run: Run) -> Rows[GenerationRow]:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    columns = run.spec.data.columns
    given = [form for form in _FORMS if _is_named(form, columns)]
    if len(given) > 1:
        raise _misnamed(f"names columns of {' and of '.join(given)}")
    if given:
        _refuse_misfits(given[0], columns)
    return load_rows(run, _check, lambda row: row.given())


def _refuse_misfits(form: str, columns: Columns) -> None:
    if foreign := _foreign(form, columns):
        raise _misnamed(f"names a column for {foreign[0]}, which rows of {form} do not have")
    read = [getattr(columns, field) or field for field in _FORMS[form].columns]
    if len(set(read)) < len(read):
        what = f"{read[0]!r} would be read as {' and as '.join(_FORMS[form].columns)}"
        raise _misnamed(what, "name a column of its own for each")


def _misnamed(what: str, hint: str = "a job learns from one form of rows; leave the others out") -> TrainerError:
    return TrainerError(ExitCode.SPEC_INVALID, f"spec.data.columns: {what}", hint)


def _check(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> GenerationRow | None:
    """The row in its form, or None when it is dropped."""
    if (form := _form(row, columns, report)) is None:
        return None
    foreign = _foreign(form, columns)
    if foreign and report.num_read == 1 and report.is_training:
        where = f"{report.source} {row.place}"
        raise _misnamed(f"names a column for {foreign[0]}, which rows of {form} ({where}) do not have")
    found = _read(form, row, columns, report, is_labelled)
    if foreign and found is not None:
        report.note(f"of {form}, which have no column for {' and none for '.join(foreign)}", row.place)
    return found


def _read(form: str, row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> GenerationRow | None:
    match form:
        case "text":
            return _plain_text(row, columns, report)
        case "messages":
            return read_chat(row, columns.messages or "messages", columns, report, is_labelled)
        case "conversations":
            return read_chat(row, "conversations", columns, report, is_labelled)
        case "prompt and completion":
            return _prompt_completion(row, columns, report, is_labelled)
        case "instruction and output":
            return _instruction(row, columns, report, is_labelled)
        case _:
            raise AssertionError(form)


def _form(row: Row, columns: Columns, report: DataReport) -> str | None:
    """Which form a row has: that of the columns that are given, else of those it has; None when it is dropped."""
    for form in _FORMS:
        if _is_named(form, columns):
            return form
    found = _found(row, columns)
    if len(found) == 1:
        return found[0]
    if report.num_read == 1:  # what is wrong with the first row is wrong with the columns
        raise _no_form(row, found, report)
    report.drop_unusable(f"with {' and '.join(found)}" if found else "with empty text", row.place)
    return None


def _found(row: Row, columns: Columns) -> list[str]:
    """The forms that a row may have, by its columns: of several those that it has in full, with what is named."""
    there = {column for column, value in row.values.items() if value is not None} - named(columns, row)
    found = [form for form in _FORMS if not there.isdisjoint(_FORMS[form].columns)]
    if len(found) > 1:
        found = [form for form in found if there.issuperset(_FORMS[form].columns)] or found[:1]
    if len(found) > 1:
        found = [form for form in found if not _foreign(form, columns)] or found
    return found


def _foreign(form: str, columns: Columns) -> list[str]:
    """The named fields that some forms share, of those this one has not."""
    return [field for field in _SHARED if getattr(columns, field) and field not in _FORMS[form].shared]


def _no_form(row: Row, found: list[str], report: DataReport) -> TrainerError:
    """The error for a row of no form, or of several."""
    where = f"{report.source} {row.place}"
    if found:
        return TrainerError(
            ExitCode.DATA_INVALID,
            f"{where}: has {' and '.join(found)}, and it is not said which to learn",
            f"set data.columns to one of them, such as columns: {{{_FORMS[found[-1]].choice}}}",
        )
    names = [str(name) for name in row.values]
    listed = ", ".join(map(shown, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return TrainerError(
        ExitCode.DATA_INVALID,
        f"{where}: no column 'text', 'prompt' and 'completion', 'messages', 'conversations', or 'instruction' and "
        f"'output'; it has {listed or 'none'}",
        "set data.columns.text; or data.columns.prompt and completion; or data.columns.messages; or "
        "data.columns.instruction and output"
        if report.is_training
        else f"rename the columns there: {SHARED_COLUMNS}",
    )


def _is_named(form: str, columns: Columns) -> bool:
    return any(getattr(columns, field) for field in _FORMS[form].fields)


def _plain_text(row: Row, columns: Columns, report: DataReport) -> PlainText | None:
    text = text_in(row, columns.text or "text", "text", report)
    if not text.strip():
        report.drop_unusable("with empty text", row.place)
    elif not is_unicode(text):
        report.drop_unusable("with half a character", row.place)
    else:
        return PlainText(text, row.place)
    return None


def _prompt_completion(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> PromptCompletion | None:
    prompt = text_in(row, columns.prompt or "prompt", "prompt", report)
    completion = text_in(row, columns.completion or "completion", "completion", report) if is_labelled else None
    if not prompt.strip():
        report.drop_unusable("without prompt", row.place)
    elif completion is not None and not completion.strip():
        report.drop_unusable("without completion", row.place)
    elif not all(map(is_unicode, (prompt, completion or ""))):
        report.drop_unusable("with half a character", row.place)
    else:
        return PromptCompletion(prompt, completion, row.place)
    return None


def _instruction(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> Instruction | None:
    instruction = text_in(row, columns.instruction or "instruction", "instruction", report)
    output = text_in(row, columns.output or "output", "output", report) if is_labelled else None
    about, system = (
        text if text.strip() else ""
        for text in (
            optional_text_in(row, columns, "input", report),
            optional_text_in(row, columns, "system", report),
        )
    )
    if not instruction.strip():
        report.drop_unusable("without instruction", row.place)
    elif output is not None and not output.strip():
        report.drop_unusable("without output", row.place)
    elif parsed(optional_in(row, columns, "history", report)):
        report.drop_unusable("with a history, which messages can have", row.place)
    elif not all(map(is_unicode, (instruction, about, output or "", system))):
        report.drop_unusable("with half a character", row.place)
    else:
        return Instruction(instruction, about, output, row.place, system)
    return None
