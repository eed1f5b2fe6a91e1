"""What a model can take: how long an input, which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.batching import Example
from finetune_trainer.data.report import DataReport
from finetune_trainer.errors import TrainerError
from finetune_trainer.model_config import read_config
from finetune_trainer.models import Loaded, longest_input, token_table
from finetune_trainer.prompts.place import no_room, positions_taken


def max_length(run: Run, directory: Path, tokenizer: PreTrainedTokenizerBase, default: int) -> int:
    """The longest input of a run in tokens. Raises TrainerError when more is asked for than the model takes."""
    limit, wanted = longest_input(directory, tokenizer), run.spec.data.max_length
    prompt = run.spec.strategy.prompt_tuning
    taken = positions_taken(prompt, read_config(directory)) if prompt else 0
    if prompt is not None and taken >= limit:
        raise no_room(prompt, limit)
    room = limit - taken
    if wanted is not None and wanted > room:
        share = f", of which the soft prompt takes {taken}" if taken else ""
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.data.maxLength is {wanted}, but the model takes at most {limit} tokens{share}",
            f"use at most {room}" + (", or a shorter prompt" if taken else ""),
        )
    # Tokenizers without a limit of their own say so with a huge number.
    return wanted or min(room, tokenizer.model_max_length, default)


def check_vocabulary(loaded: Loaded, directory: Path, examples: Sequence[Example]) -> None:
    """Raise TrainerError when the tokenizer gives tokens that the model does not know."""
    table = token_table(loaded.model)
    if table is None:
        return
    highest, size = max(max(example.input_ids) for example in examples), len(table)
    if highest >= size:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{directory}: the tokenizer gives token {highest}, but the model knows {size} tokens only",
            "use the tokenizer that belongs to the model",
        )


def check_usable(report: DataReport, limit: float, any_left: bool) -> None:
    """Raise TrainerError when tokenising has left no rows of a source, or dropped more of them than may be dropped."""
    if any_left and report.unusable_fraction <= limit:
        return
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{report}; {f'{report.unusable_fraction:.1%} of the rows are unusable' if any_left else 'no rows are left'}",
        f"mend the rows, or raise data.maxDroppedFraction (now {limit:g})",
    )
