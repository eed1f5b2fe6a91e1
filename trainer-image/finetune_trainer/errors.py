"""The one exception that ends a run for a known reason."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode


class TrainerError(Exception):
    """Ends the run with an exit code, one clear sentence and what to do about it; never a traceback."""

    def __init__(self, code: ExitCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Stopped(TrainerError):
    """The run was asked to stop and has saved a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(
            ExitCode.STOPPED, f"stopped at step {step}; a checkpoint is saved", "start the job again to resume from it"
        )


def non_finite(what: str, step: int) -> TrainerError:
    """The error for a NaN or infinity at a step; at 0 nothing was updated yet, so it is the given model's."""
    if step == 0:
        return TrainerError(
            ExitCode.MODEL_INVALID,
            f"{what} before anything was trained: the given model computes it",
            "look for weights in it that are NaN or infinite, and copy it again",
        )
    return TrainerError(
        ExitCode.NON_FINITE_LOSS,
        f"{what} at step {step}; nothing was saved after the last good checkpoint",
        "lower training.learningRate (a tenth is a good first try), or look for broken rows in the data",
    )
