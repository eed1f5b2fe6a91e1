"""The trainer's command: `python -m finetune_trainer RUN.json`. Ends with a documented exit code and a last word."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

import torch
from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import problems_of
from finetune_api.run import Run, Termination
from finetune_trainer.errors import TrainerError
from finetune_trainer.progress import ProgressLog, write_termination
from finetune_trainer.run import execute
from finetune_trainer.stop import StopFlag

logger = logging.getLogger("finetune_trainer")


def main() -> int:
    """Run the job in a run file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="finetune_trainer", description=__doc__)
    parser.add_argument("run", type=Path, help="the run as JSON (finetune_api.run.Run)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    quiet_libraries()
    stop = StopFlag()
    stop.install()
    try:
        run = Run.model_validate_json(arguments.run.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        detail = "; ".join(map(str, problems_of(error))) if isinstance(error, ValidationError) else str(error)
        logger.error("%s: %s", arguments.run, detail)
        return ExitCode.SPEC_INVALID
    termination = run_to_termination(run, stop)
    default = Path(run.work_dir, "termination.json")
    write_termination(Path(os.environ.get("TERMINATION_MESSAGE_PATH", default)), termination)
    level = logging.INFO if termination.exit_code in (ExitCode.COMPLETE, ExitCode.STOPPED) else logging.ERROR
    logger.log(
        level, "%s: %s%s", termination.reason, termination.message, f" ({termination.hint})" if termination.hint else ""
    )
    return termination.exit_code


def run_to_termination(run: Run, stop: StopFlag) -> Termination:
    """Execute a run and turn however it ends into the last word."""
    progress = ProgressLog(Path(run.work_dir, "progress.jsonl"))
    code, hint, result = ExitCode.COMPLETE, "", None
    try:
        result = execute(run, progress, stop)
        message = f"the model is in {run.spec.output.uri}"
    except TrainerError as error:
        code, message, hint = error.code, error.message, error.hint
    except (torch.OutOfMemoryError, MemoryError) as error:
        code, message = ExitCode.OUT_OF_MEMORY, str(error).partition("\n")[0] or "out of memory"
        hint = "set training.microBatchSize lower (the result stays the same), lower data.maxLength, or use adapters"
    except Exception as error:
        logger.exception("a defect of the trainer")
        code, message = ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
        hint = "please report it with the log"
    return Termination(
        exit_code=code,
        reason=code.reason,
        message=message[:2048],
        hint=hint,
        progress=progress.latest,
        result=result,
    )


def quiet_libraries() -> None:
    """Keep the libraries' bars and chatter out of the log."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
