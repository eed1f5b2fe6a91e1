"""What a tuned model says of generation: where it stops, and settings that can be saved with it."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path

from transformers import GenerationConfig

from finetune_trainer.model_checks import invalid

_FILE = "generation_config.json"
_NAMES = re.compile(r"^- `(\w+)`:", re.MULTILINE)

logger = logging.getLogger(__name__)


def stop_at(config: GenerationConfig, end_ids: set[int], directory: Path) -> None:
    """Let generation end where the training texts ended. Raises TrainerError when that could not be saved.

    transformers saves a contradictory file back as it was, but not with a change: of published ones, many have settings
    for drawing tokens (temperature, top_p) and not the switch for it.
    """
    known = config.eos_token_id
    before = set() if known is None else set(known) if isinstance(known, list) else {known}
    if not end_ids <= before:
        ends = sorted(before | end_ids)
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
    if (words := _refusal(config)) is None:
        return
    named = ", ".join(_NAMES.findall(words)) or " ".join(words.split())[:200]
    if config.do_sample is None:
        config.do_sample = True
        if _refusal(config) is None:
            logger.info("%s has %s and no do_sample: it is saved with do_sample true, which they are for", _FILE, named)
            return
    raise invalid(
        f"{directory / _FILE}: the other settings rule out {named}, so transformers would not save the tuned model's",
        "remove what is named in a copy of the model; for temperature and its like, set do_sample to true instead",
    )


def _refusal(config: GenerationConfig) -> str | None:
    """Why transformers would not save it; None if it would."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            config.save_pretrained(scratch)
        except ValueError as error:
            return str(error)
    return None
