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
    FORGETTING = 18
    STORAGE_FULL = 40
    NETWORK_UNAVAILABLE = 41
    WORK_DIRECTORY_BUSY = 42
    HANG = 43
    PEER_LOST = 44
    STOPPED = 143

    @property
    def reason(self) -> str:
        """The condition reason that this code becomes: `DATA_INVALID` is `DataInvalid`."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def permanent(self) -> bool:
        """Whether the same job would fail in the same way again."""
        return 10 <= self.value < 30

    @property
    def retried(self) -> str:
        """Whether a cluster starts the job again, in words."""
        if self is ExitCode.COMPLETE or self.permanent:
            return "no"
        return "yes, not counted" if self.uncounted else "up to `spec.backoffLimit` times"

    @property
    def uncounted(self) -> bool:
        """Whether it is no failed try: a stop that was asked for, or the loss of a process whose own end counts."""
        return self in (ExitCode.PEER_LOST, ExitCode.STOPPED)

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
    ExitCode.MODEL_INVALID: "The model is absent, has no whole, finite safetensors weights, or does not fit the task.",
    ExitCode.OUTPUT_REFUSED: "The output is not an earlier one, or it or the work directory cannot be written.",
    ExitCode.NON_FINITE_LOSS: "Loss, gradient or weights became infinite or NaN; nothing was saved after it.",
    ExitCode.OUT_OF_MEMORY: "The device's memory did not suffice.",
    ExitCode.EXPORT_MISMATCH: "The exported model, reloaded in a fresh process, did not give the same logits.",
    ExitCode.FORGETTING: "The tuned model lost more on the retention rows than evaluation.retention.maxDrop allows.",
    ExitCode.STORAGE_FULL: "The disk is full; the last good checkpoint is kept.",
    ExitCode.NETWORK_UNAVAILABLE: "A hub, an object store, a web server or other processes could not be reached.",
    ExitCode.WORK_DIRECTORY_BUSY: "Another trainer is at work in the same directory, or on the same output.",
    ExitCode.HANG: "Nothing got on for too long; the log shows where each thread stood.",
    ExitCode.PEER_LOST: "Another process of the job ended or did not answer; its end counts, not this one.",
    ExitCode.STOPPED: "Stopped by a signal after saving a checkpoint; the next run resumes from it.",
}


_INTRODUCTION = """\
<!-- Generated from operator/finetune_api by `make generate`; do not edit. -->
# Exit codes

The trainer ends with one of these codes, and its last words (the termination message) carry the same reason with what
happened and what to do.

- **10 to 29** would happen again with the same manifest and the same data, so nothing is retried: a retry would only
  burn hours of a GPU. **40 to 59** may pass when the disk, the network or the neighbour has changed. **143** is no
  failure: a checkpoint was saved, and the next run goes on from it. Nor is **44** counted: the process that was lost
  tells why. **1** is a defect of the trainer or of the
  machine; because nobody can tell which, it is tried again. So is every code that is not listed, such as 137, where
  the kernel killed the trainer, most often because memory ran out.
- **`finetune run`** ends with the code of the first job that is not Complete, and with 0 only when every job is; it
  starts nothing again by itself. After a stop it starts no further job, and ends with 143 if one was left. What it
  refuses itself has the same codes: 10 for a manifest or a missing `--volume`, 14 and 40 for a work directory, 42 for
  one in use. **`finetune validate`** ends with 0 or 10. Both end with 2 for a wrong command line.
- **On a cluster** the codes are the Job's `podFailurePolicy`: a permanent one fails the job at once, 44, 143 and
  evictions are ignored, unless the pod wrote more to its disk than it may, and everything else counts against
  `spec.backoffLimit`.

"""


def render() -> str:
    """The page docs/exit-codes.md."""
    return _INTRODUCTION + markdown_table()


def markdown_table() -> str:
    """The codes as a table."""
    lines = ["| code | reason | retried | meaning |", "|---|---|---|---|"]
    lines += [f"| {code.value} | `{code.reason}` | {code.retried} | {code.explanation} |" for code in ExitCode]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
