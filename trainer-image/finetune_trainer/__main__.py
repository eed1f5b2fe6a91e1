"""The trainer's command: `python -m finetune_trainer RUN.json`. Ends with a documented exit code and a last word."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # A container's first process ignores a signal that it has no handler for, and what follows takes seconds to import.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.logs import log_to
from finetune_api.problems import printable, problems_of
from finetune_api.run import Run, Termination
from finetune_trainer.errors import TrainerError
from finetune_trainer.launch import End, end_with_launcher, launch, num_processes
from finetune_trainer.out_of_memory import TRAINING_HINT, is_out_of_memory, words_of
from finetune_trainer.progress import ProgressLog, write_termination
from finetune_trainer.rendezvous import ALONE, Place, find_place
from finetune_trainer.reporter import from_environment as reporter_of_environment
from finetune_trainer.run import execute
from finetune_trainer.stop import StopFlag
from finetune_trainer.watchdog import HINT, Watchdog

logger = logging.getLogger("finetune_trainer")


def main() -> int:
    """Run the job in a run file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="finetune_trainer", description=__doc__)
    parser.add_argument("run", type=Path, help="the run as JSON (finetune_api.run.Run)")
    parser.add_argument("--attached", action="store_true", help="stop when the standard input ends")
    arguments = parser.parse_args()
    log_to(sys.stdout, "%(asctime)s %(levelname)s %(message)s")
    quiet_libraries()
    stop = StopFlag()
    stop.install()
    if arguments.attached:
        stop.follow(sys.stdin.fileno())
    last_word = os.environ.get("TERMINATION_MESSAGE_PATH")
    try:
        run = Run.model_validate_json(arguments.run.read_bytes())
    except (OSError, ValidationError) as error:
        detail = "; ".join(map(str, problems_of(error))) if isinstance(error, ValidationError) else str(error)
        termination = make_termination(ExitCode.SPEC_INVALID, f"{arguments.run}: {detail}")
        end = End(termination.exit_code, termination)
    else:
        last_word = last_word or str(Path(run.work_dir, "termination.json"))
        end = train(run, arguments.run, stop, last_word)
    if end.termination is not None:
        say(end.termination, last_word)
    return end.code


def say(last: Termination, place: str | None) -> None:
    """Say the last word: in the file at that place, then in the log."""
    if place:
        write_termination(Path(place), last)
    level = logging.INFO if last.exit_code in (ExitCode.COMPLETE, ExitCode.STOPPED) else logging.ERROR
    logger.log(level, "%s: %s%s", last.reason, last.message, f" ({last.hint})" if last.hint else "")


def train(run: Run, run_file: Path, stop: StopFlag, last_word: str) -> End:
    """Train in this process, or in one for each of several GPUs, and say how it ended.

    A process that hangs ends at once, and says so itself where the last word goes.
    """
    try:
        place = find_place(run.spec.resources)
        if place.has_launcher:
            end_with_launcher()
        elif (num_local := num_processes(run.spec.resources, run.has_gpus)) > 1:
            return launch([sys.executable, "-m", "finetune_trainer", str(run_file)], place, num_local, stop)
    except TrainerError as error:
        termination = make_termination(error.code, error.message, error.hint)
    else:
        termination = run_to_termination(run, stop, place, say_hanging=lambda last: say(last, last_word))
    return End(termination.exit_code, termination)


def run_to_termination(
    run: Run, stop: StopFlag, place: Place = ALONE, say_hanging: Callable[[Termination], None] | None = None
) -> Termination:
    """Execute a run and turn however it ends into the last word. Of several processes the first alone is not quiet.

    With `say_hanging` a watchdog ends the process when it hangs; that is called before.
    """
    is_first = place.rank == 0
    reporter = reporter_of_environment() if is_first else None
    progress = ProgressLog(
        Path(run.work_dir, "progress.jsonl") if is_first else None,
        report=reporter.update if reporter else lambda _: None,
    )
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)
    code, hint, result = ExitCode.COMPLETE, "", None
    watchdog: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if say_hanging is not None:
        watchdog = Watchdog(
            lambda what: say_hanging(make_termination(ExitCode.HANG, what, HINT, progress=progress.latest))
        )
    try:
        with watchdog:
            result = execute(run, progress, stop, place)
        message = f"the model is in {run.spec.output.uri}"
    except TrainerError as error:
        code, message, hint = error.code, error.message, error.hint
    except Exception as error:
        if is_out_of_memory(error):
            code, message, hint = ExitCode.OUT_OF_MEMORY, words_of(error), TRAINING_HINT
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


def quiet_libraries() -> None:
    """Keep the libraries' bars and chatter out of the log."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it names faster kernels that could be installed


if __name__ == "__main__":
    sys.exit(main())
