"""Which changes of a job the API server refuses: what is accepted is honoured, by the operator or by the next pods."""

from __future__ import annotations

from finetune_api.base import Rule
from finetune_api.exit_codes import ExitCode

_PHASE = "(has(self.status) && has(self.status.phase) ? self.status.phase : '')"
# Such a job has not run: when the field is mended, the operator tries. What a trainer ended by that word has a start.
_WAS_REFUSED = (
    "has(self.status) && !has(self.status.startTime) && has(self.status.conditions) && "
    "self.status.conditions.exists(condition, condition.type == "
    f"'Failed' && condition.reason == '{ExitCode.SPEC_INVALID.reason}')"
)


def immutable(field: str) -> Rule:
    """A rule of the spec: a field that decides the weights."""
    return Rule(
        cel=f"self.{field} == oldSelf.{field}",
        message=f"{field} cannot be changed; create a new job",
        holds=None,
        field=f".{field}",
    )


def fixed_while_running(field: str) -> Rule:
    """A rule of the job: a field that only new pods take on. Nobody's training is stopped without having said so."""
    why = "while the job runs: set suspend to true with it, and then to false again"
    return _fixed_unless(f"self.spec.suspend || oldSelf.spec.suspend || {_PHASE} != 'Running'", field, why)


def fixed_at_the_end(field: str) -> Rule:
    """A rule of the job: a field that has no effect once the job has ended."""
    why = "any more, because the job has ended; create a new job"
    return _fixed_unless(f"!({_PHASE} in ['Complete', 'Failed']) || ({_WAS_REFUSED})", field, why)


def _fixed_unless(allowed: str, field: str, why: str) -> Rule:
    message = f"{field} cannot be changed {why}"
    return Rule(cel=f"{_stays(field)} || {allowed}", message=message, holds=None, field=f".spec.{field}")


def _stays(field: str) -> str:
    """CEL: whether a field of the spec, which may be left out, is not changed."""
    new, old = f"self.spec.{field}", f"oldSelf.spec.{field}"
    return f"(has({new}) ? has({old}) && {new} == {old} : !has({old}))"
