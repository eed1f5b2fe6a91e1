"""How many plans does one core make in a second? The pure part of the operator, by situation and over all of them.

Usage: python benchmarks/plan_speed.py [--seconds 2]
Seconds are of CPU, of this process alone, for each situation. The mix is an equal number of plans of every situation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import yaml
from harness import ROOT, machine, write_results

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import Progress
from finetune_operator.plan.plan import Plan, make_plan
from finetune_operator.plan.snapshot import Snapshot

sys.path.insert(0, str(ROOT / "tests"))

from plan_builders import (
    NOW,
    SETTINGS,
    ChildBuilder,
    JobBuilder,
    PodBuilder,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_word,
    snapshot,
)
from status_samples import full_status

_ROUNDS = 5
_BATCH = 50
_SAMPLE = ROOT / "manifests" / "samples" / "sentiment-adapter.yaml"
_LATER = timedelta(minutes=5)


@dataclass(frozen=True)
class Situation:
    """What a plan is made from, and what has to be true of the plan for its figure to mean anything."""

    name: str
    observed: Snapshot
    holds: Callable[[Plan], bool]


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    rates = {situation.name: _rate(situation, seconds) for situation in situations()}
    rates["the mix"] = len(rates) / sum(1 / rate for rate in rates.values())
    print("| situation | plans a second |\n|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} |")
    packages = ("pydantic", "pydantic-core")
    plans = {name: round(rate) for name, rate in rates.items()}
    print("written:", write_results("plan_speed", {"machine": machine(packages), "plans_per_second": plans}))


def situations() -> list[Situation]:
    """A job's life, and what goes on around it."""
    word = make_word(ExitCode.COMPLETE, "done", progress=full_status().progress, result=full_status().result)
    data = make_word(ExitCode.DATA_INVALID, "no rows", "look at spec.data.train")
    child, pod, starting = make_child(_job()), make_pod().scheduled().running(), make_pod()
    suspended, complete = make_child(_job()).suspended(), make_child(_job()).complete(NOW)
    failed, done = make_child(_job()).fails(NOW), make_pod().succeeded(word)
    running = _written(_job(), child, pod)
    said, news = make_progress(5), make_progress(9)
    reported = _written(running, child, pod, progress=said)
    return [
        Situation("a new job", snapshot(_job()), _creates),
        Situation("pending, at rest", snapshot(_written(_job(), child, starting), child, starting), _rests),
        Situation("running for the first time", snapshot(_job(), child, pod), _tells),
        Situation("running, at rest", snapshot(running, child, pod), _rests),
        Situation("running, a report to write", snapshot(running, child, pod, progress=news), _writes),
        Situation("running, a report without news", snapshot(reported, child, pod, progress=said), _rests),
        Situation("suspended, at rest", snapshot(_written(_job().suspended(), suspended), suspended), _rests),
        Situation("complete for the first time", snapshot(running, complete, done), _tells),
        Situation("complete, at rest", snapshot(_written(_job(), complete, done), complete, done), _rests),
        Situation("failed for the first time", snapshot(running, failed, make_pod().failed(11, word=data)), _tells),
        Situation("refused for its spec", snapshot(_job().spec(task="Poetry")), _tells),
    ]


def _creates(plan: Plan) -> bool:
    return bool(plan.create)


def _writes(plan: Plan) -> bool:
    return plan.status is not None


def _tells(plan: Plan) -> bool:
    return bool(plan.events)


def _rests(plan: Plan) -> bool:
    return plan == Plan()


def _job() -> JobBuilder:
    """The sample that ships with the operator."""
    return make_job().spec(**yaml.safe_load(_SAMPLE.read_text())["spec"])


def _written(job: JobBuilder, child: ChildBuilder, *pods: PodBuilder, progress: Progress | None = None) -> JobBuilder:
    """The job once what is planned for it is written."""
    plan = make_plan(snapshot(job, child, *pods, progress=progress), SETTINGS, NOW)
    return JobBuilder(job.obj()).status(plan.status)


def _rate(situation: Situation, seconds: float) -> float:
    """Plans a second of CPU, the median of several rounds."""
    now, rates = NOW + _LATER, []
    if not situation.holds(make_plan(situation.observed, SETTINGS, now)):
        raise RuntimeError(f"{situation.name}: the plan is not the one that this situation stands for")
    for _ in range(_ROUNDS):
        made, started = 0, time.process_time()
        while (elapsed := time.process_time() - started) < seconds / _ROUNDS:
            for _ in range(_BATCH):
                make_plan(situation.observed, SETTINGS, now)
            made += _BATCH
        rates.append(made / elapsed)
    return statistics.median(rates)


if __name__ == "__main__":
    main()
