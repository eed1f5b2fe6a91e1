"""The trainer's command: `python -m finetune_trainer RUN.json`. Ends with a documented exit code and a last word."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # A container's first process ignores a signal that it has no handler for, and what follows takes seconds to import.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))

import torch
from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.logs import log_to
from finetune_api.problems import printable, problems_of
from finetune_api.run import Run, Termination
from finetune_trainer.errors import TrainerError
from finetune_trainer.launch import End, end_with_launcher, launch, num_processes
from finetune_trainer.progress import ProgressLog, write_termination
from finetune_trainer.rendezvous import ALONE, Place, find_place
from finetune_trainer.reporter import from_environment as reporter_of_environment
from finetune_trainer.run import execute
from finetune_trainer.stop import StopFlag

_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "CUDA error: out of memory")

logger = logging.getLogger("finetune_trainer")


def main() -> int:
    """Run the job in a run file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="finetune_trainer", description=__doc__)
    parser.add_argument("run", type=Path, help="the run as JSON (finetune_api.run.Run)")
    arguments = parser.parse_args()
    log_to(sys.stdout, "%(asctime)s %(levelname)s %(message)s")
    quiet_libraries()
    stop = StopFlag()
    stop.install()
    last_word = os.environ.get("TERMINATION_MESSAGE_PATH")
    try:
        run = Run.model_validate_json(arguments.run.read_bytes())
    except (OSError, ValidationError) as error:
        detail = "; ".join(map(str, problems_of(error))) if isinstance(error, ValidationError) else str(error)
        termination = make_termination(ExitCode.SPEC_INVALID, f"{arguments.run}: {detail}")
        end = End(termination.exit_code, termination)
    else:
        end = train(run, arguments.run, stop)
        last_word = last_word or str(Path(run.work_dir, "termination.json"))
    if (said := end.termination) is not None:
        if last_word:
            write_termination(Path(last_word), said)
        level = logging.INFO if said.exit_code in (ExitCode.COMPLETE, ExitCode.STOPPED) else logging.ERROR
        logger.log(level, "%s: %s%s", said.reason, said.message, f" ({said.hint})" if said.hint else "")
    return end.code


def train(run: Run, run_file: Path, stop: StopFlag) -> End:
    """Train in this process, or in one for each of several GPUs, and say how it ended."""
    try:
        place = find_place(run.spec.resources)
        if place.has_launcher:
            end_with_launcher()
        elif (num_local := num_processes(run.spec.resources)) > 1:
            return launch([sys.executable, "-m", "finetune_trainer", str(run_file)], place, num_local, stop)
    except TrainerError as error:
        termination = make_termination(error.code, error.message, error.hint)
    else:
        termination = run_to_termination(run, stop, place)
    return End(termination.exit_code, termination)


def run_to_termination(run: Run, stop: StopFlag, place: Place = ALONE) -> Termination:
    """Execute a run and turn however it ends into the last word. Of several processes the first alone is not quiet."""
    is_first = place.rank == 0
    reporter = reporter_of_environment() if is_first else None
    progress = ProgressLog(
        Path(run.work_dir, "progress.jsonl") if is_first else None,
        report=reporter.update if reporter else lambda _: None,
    )
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)
    code, hint, result = ExitCode.COMPLETE, "", None
    try:
        result = execute(run, progress, stop, place)
        message = f"the model is in {run.spec.output.uri}"
    except TrainerError as error:
        code, message, hint = error.code, error.message, error.hint
    except Exception as error:
        if is_out_of_memory(error):
            code, message = ExitCode.OUT_OF_MEMORY, str(error).partition("\n")[0] or "out of memory"
            hint = "set training.microBatchSize lower (same result), lower data.maxLength, use adapters, or give more"
        else:
            logger.exception("a defect of the trainer")
            code, message = ExitCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}"
            hint = "please report it with the log"
    if reporter:
        reporter.close()
    return make_termination(code, message, hint, progress=progress.latest, result=result)


def make_termination(code: ExitCode, message: str, hint: str = "", **known: Any) -> Termination:
    """The last word: one line, and what is longer than the contract allows is cut."""
    message, hint = printable(message)[:2048], printable(hint)[:512]
    return Termination(exit_code=code, reason=code.reason, message=message, hint=hint, **known)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On a CPU torch says so with a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)


def quiet_libraries() -> None:
    """Keep the libraries' bars and chatter out of the log."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
