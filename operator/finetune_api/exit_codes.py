"""The trainer's exit codes: 10-29 fail again and are not retried, 40-59 may pass on a retry, 143 is a graceful stop."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a trainer process ended. `finetune run` passes the code on; the operator's podFailurePolicy reads it."""

    COMPLETE = 0
    INTERNAL_ERROR = 1
    SPEC_INVALID = 10
    DATA_INVALID = 11
    CREDENTIALS_INVALID = 12
    MODEL_INVALID = 13
    OUTPUT_REFUSED = 14
    NON_FINITE_LOSS = 15
    OUT_OF_MEMORY = 16
    EXPORT_MISMATCH = 17
    STORAGE_FULL = 40
    NETWORK_UNAVAILABLE = 41
    WORK_DIRECTORY_BUSY = 42
    HANG = 43
    STOPPED = 143

    @property
    def reason(self) -> str:
        """The condition reason that this code becomes: `DATA_INVALID` is `DataInvalid`."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed when it is started again."""
        return 40 <= self.value < 60 or self is ExitCode.STOPPED

    @property
    def explanation(self) -> str:
        """One sentence for the documentation and for people."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    ExitCode.COMPLETE: "The job is Complete: the model was exported, reloaded and compared.",
    ExitCode.INTERNAL_ERROR: "A defect of the trainer; the log has the traceback.",
    ExitCode.SPEC_INVALID: "The manifest, or a value that only the model or the data show to be wrong.",
    ExitCode.DATA_INVALID: "The data cannot be read or cannot be learnt from.",
    ExitCode.CREDENTIALS_INVALID: "A source needs credentials that are absent or refused.",
    ExitCode.MODEL_INVALID: "The model is absent, has no safetensors weights, or does not fit the task.",
    ExitCode.OUTPUT_REFUSED: "The output directory holds something that is not an earlier output.",
    ExitCode.NON_FINITE_LOSS: "Loss, gradient or weights became infinite or NaN; nothing was saved after it.",
    ExitCode.OUT_OF_MEMORY: "The device's memory did not suffice.",
    ExitCode.EXPORT_MISMATCH: "The exported model, reloaded in a fresh process, did not give the same logits.",
    ExitCode.STORAGE_FULL: "The disk is full; the last good checkpoint is kept.",
    ExitCode.NETWORK_UNAVAILABLE: "A hub or store could not be reached.",
    ExitCode.WORK_DIRECTORY_BUSY: "Another trainer is at work in the same directory.",
    ExitCode.HANG: "No step was finished for too long.",
    ExitCode.STOPPED: "Stopped by a signal after saving a checkpoint; the next run resumes from it.",
}


def markdown_table() -> str:
    """The table of docs/exit-codes.md."""
    lines = ["| code | reason | retried | meaning |", "|---|---|---|---|"]
    lines += [
        f"| {code.value} | `{code.reason}` | {'yes' if code.retryable else 'no'} | {code.explanation} |"
        for code in ExitCode
    ]
    return "\n".join(lines) + "\n"
