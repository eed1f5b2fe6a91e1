"""`kubectl finetune watch`: progress bars that end when the jobs do."""

from __future__ import annotations

from rich.console import Console

from finetune_api.exit_codes import ExitCode
from finetune_cli.display import Board, Display
from finetune_cli.kubectl.advice import advice
from finetune_cli.kubectl.cluster import Change, Cluster
from finetune_cli.kubectl.facts import Facts
from finetune_cli.text import say


class _Watched:
    """A job on the board: what was shown last, so that only news is shown."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.facts: Facts | None = None
        self._evaluation: dict[str, float] = {}

    def show(self, facts: Facts) -> None:
        self.facts = facts
        if not facts.has_ended:
            self.display.state(facts.state)
        if (progress := facts.status.progress) is not None:
            self.display.progress(progress)
            if progress.evaluation and progress.evaluation != self._evaluation:
                self._evaluation = dict(progress.evaluation)
                self.display.evaluation({"when": "so far", "step": progress.step, "metrics": progress.evaluation})
        if facts.has_ended:  # said last, when all that led to it has been
            self.display.state(facts.state, ended=True)


class _Watch:
    """Every job that is watched, until all have ended."""

    def __init__(self, board: Board, only: str | None, with_namespace: bool) -> None:
        self._board = board
        self._only = only
        self._with_namespace = with_namespace
        self._jobs: dict[tuple[str, str], _Watched] = {}
        self._deleted: list[str] = []

    def take(self, change: Change) -> None:
        """A job is there, has changed, or is gone. What had ended before is of no interest unless asked for."""
        key = (change.namespace, change.name)
        watched = self._jobs.get(key)
        if change.job is None:
            if watched is not None:
                self._gone(key, watched)
            return
        facts = Facts(change.job)
        if watched is None:
            if facts.has_ended and self._only is None:
                return
            shown = f"{facts.namespace}/{facts.name}" if self._with_namespace else facts.name
            watched = self._jobs[key] = _Watched(self._board.display(shown, facts.metric))
        watched.show(facts)

    def _gone(self, key: tuple[str, str], watched: _Watched) -> None:
        watched.display.state("deleted", ended=True)
        if watched.facts is not None and not watched.facts.has_ended:
            self._deleted.append(key[1])
            del self._jobs[key]

    def has_ended(self) -> bool:
        """Whether nothing is left to wait for."""
        return all(watched.facts is not None and watched.facts.has_ended for watched in self._jobs.values())

    def code(self, console: Console) -> int:
        """Say how the jobs ended that are not Complete; returns the first one's exit code, or 0."""
        for name in self._deleted:
            say(console, f"{name} was deleted before its end")
        if not self._jobs and not self._deleted:
            say(console, "no job is waiting or running; kubectl finetune list shows those that have ended")
        code: int = ExitCode.INTERNAL_ERROR if self._deleted else ExitCode.COMPLETE
        for facts in (watched.facts for watched in self._jobs.values()):
            if facts is None or facts.exit_code == ExitCode.COMPLETE:
                continue
            reason, message = facts.cause
            todo = advice(reason, facts.namespace, facts.name, begun=facts.status.start_time is not None)
            say(console, f"{facts.name} failed: {reason}: {message}\n  {todo}")
            code = code or facts.exit_code
        return code


def watch(cluster: Cluster, namespace: str | None, name: str | None, console: Console) -> int:
    """Show a job, or all that have not ended, until they have; returns the first failure's exit code, or 0."""
    if name is not None and namespace is not None:
        cluster.job(namespace, name)  # says so when there is none
    with Board(console) as board:
        watched = _Watch(board, name, with_namespace=namespace is None)
        listed = False
        for change in cluster.follow(namespace, name):
            if change is None:
                listed = True
            else:
                watched.take(change)
            if listed and watched.has_ended():
                break
    return watched.code(console)
