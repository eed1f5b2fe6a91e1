"""The dashboard of all jobs and of the operator."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.parts import (
    FLEET_UID,
    JOB_UID,
    WINDOW,
    Panel,
    Query,
    bars,
    counted,
    figure,
    graph,
    make_dashboard,
    quantile,
    rows_of,
    variable,
)

_NAMESPACES = 'namespace=~"$namespace"'
_GOODPUT = f"finetune_goodput_seconds_total{{{_NAMESPACES}}}"
_BADPUT = f"finetune_badput_seconds_total{{{_NAMESPACES}}}"
_WASTED = f'finetune_badput_seconds_total{{{_NAMESPACES},cause!="Suspended"}}'
_ENDED = f"finetune_jobs_ended_total{{{_NAMESPACES}}}"
_FAILED = f'finetune_jobs_ended_total{{{_NAMESPACES},outcome="Failed"}}'
_OPERATORS = 'namespace=~"$operator"'
_CONTROLLER = f'{_OPERATORS},controller="finetunejob"'
_QUEUE = f'{_OPERATORS},name="finetunejob"'


def fleet_dashboard() -> Dashboard:
    """Jobs by phase, waiting, goodput, failures, and the operator's own health."""
    return make_dashboard(
        FLEET_UID,
        "Fine-tuning / fleet",
        "All FineTuneJobs and the operator that runs them",
        [
            variable("namespace", "Namespace", "label_values(finetune_job_info, namespace)", many=True),
            variable(
                "operator",
                "Operator's namespace",
                'label_values(leader_election_master_status{name="finetunejob"}, namespace)',
                many=True,
            ),
        ],
        {
            "Jobs": _jobs(),
            "Waiting": _waiting(),
            "What the time went into": _time(),
            "How jobs end": _ends(),
            "The operator": _operator(),
        },
    )


def _jobs() -> list[Panel]:
    by_phase = f"sum by (finetune_job_phase) (finetune_job_phase{{{_NAMESPACES}}})"

    def column(metric: str) -> Query:
        return Query(f"max by (namespace, name) (finetune_job_{metric}{{{_NAMESPACES}}})")

    def moment(which: str) -> Query:
        """Grafana takes milliseconds."""
        return Query(f"1000 * max by (namespace, name) (finetune_job_{which}_time_seconds{{{_NAMESPACES}}})")

    phase = Query(f"max by (namespace, name, finetune_job_phase) (finetune_job_phase{{{_NAMESPACES}}} == 1)")
    return [
        figure("Jobs by phase", "How many jobs are in each phase now.", "none",
               Query(by_phase, "{{finetune_job_phase}}"), span=24),
        graph("Jobs by phase, over time", "A job that is deleted leaves.", "none",
              Query(by_phase, "{{finetune_job_phase}}"), span=24, stacked=True),
        rows_of(
            "Jobs", "Each job there is; its name leads to its own dashboard.",
            {
                "phase": (phase, ""),
                "progress": (column("progress_ratio"), "percentunit"),
                "loss": (column("loss"), "none"),
                "time to go": (column("eta_seconds"), "s"),
                "tokens a second": (column("tokens_per_second"), "none"),
                "checkpoint's age": (column("checkpoint_age_seconds"), "s"),
                "created": (moment("creation"), "dateTimeFromNow"),
                "ended": (moment("completion"), "dateTimeFromNow"),
            },
            {"finetune_job_phase": "phase"},
            {
                "name": f"/d/{JOB_UID}?var-datasource=${{datasource}}"
                "&var-namespace=${__data.fields.namespace}&var-job=${__value.raw}"
            },
        ),
    ]  # fmt: skip


def _waiting() -> list[Panel]:
    def waits(title: str, about: str, metric: str) -> Panel:
        buckets = f"{metric}_bucket{{{_NAMESPACES}}}"
        return graph(title, about, "s", *(
            Query(quantile(q, buckets, WINDOW), f"{q:.0%} of jobs within") for q in (0.5, 0.95)
        ))  # fmt: skip

    return [
        waits("Queue wait", "From a job's creation until its first trainer started; of the hour before.",
              "finetune_job_queue_wait_seconds"),
        waits("Time to the first step", "From a job's creation until its first step is known; of the hour before.",
              "finetune_job_time_to_first_step_seconds"),
        graph("Jobs that wait", "Queued: for admission by Kueue. Pending: for pods to run.", "none",
              *(Query(f'sum(finetune_job_phase{{{_NAMESPACES},finetune_job_phase="{phase}"}})', phase)
                for phase in ("Queued", "Pending"))),
    ]  # fmt: skip


def _time() -> list[Panel]:
    kept, wasted = (f"({counted(each, '$__range')} or vector(0))" for each in (_GOODPUT, _WASTED))
    return [
        figure("Goodput", "Share of jobs' time that led to work that was kept, in the range shown. Time that was asked "
               "to be suspended is left out. A phase counts when it ends.", "percentunit",
               Query(f"{kept} / ({kept} + {wasted})"), tall=True,
               colors=[(None, "red"), (0.5, "orange"), (0.8, "green")]),
        figure("Goodput time", "Time in which jobs ran and their work was kept, in the range shown.", "s", Query(kept),
               tall=True),
        bars("Badput by cause", "All other time of jobs, in the range shown: why nothing came of it.", "s",
             Query(counted(_BADPUT, "$__range", "cause"), "{{cause}}"), color="orange"),
        graph("Goodput and badput", "Time that was counted within the hour before; a phase counts when it ends.", "s",
              Query(counted(_GOODPUT, WINDOW), "goodput"), Query(counted(_BADPUT, WINDOW, "cause"), "{{cause}}"),
              stacked=True),
    ]  # fmt: skip


def _ends() -> list[Panel]:
    durations = f"finetune_job_duration_seconds_bucket{{{_NAMESPACES}}}"
    return [
        bars("Failures by reason", "Jobs that failed in the range shown; what each means is in docs/operator.md.",
             "none", Query(counted(_FAILED, "$__range", "reason"), "{{reason}}"), color="red"),
        graph("Jobs that ended", "Within the hour before, by outcome.", "none",
              Query(counted(_ENDED, WINDOW, "outcome"), "{{outcome}}")),
        graph("Duration", "From a job's first trainer until its end; of the hour before.", "s",
              *(Query(quantile(q, durations, WINDOW), f"{q:.0%} of jobs within") for q in (0.5, 0.95))),
    ]  # fmt: skip


def _operator() -> list[Panel]:
    def slow(title: str, about: str, metric: str, label: str) -> Panel:
        rate = f"sum by (le) (rate({metric}_bucket{{{label}}}[$__rate_interval]))"
        return graph(title, about, "s", *(Query(f"histogram_quantile({q}, {rate})", f"{q:.0%} within")
                                          for q in (0.5, 0.99)))  # fmt: skip

    return [
        figure("Leader", "How many replicas lead, by the namespace they run in; exactly one should in each.", "none",
               Query(f"sum by (namespace) (leader_election_master_status{{{_QUEUE}}})", "{{namespace}}"),
               colors=[(None, "red"), (1, "green"), (2, "red")]),
        figure("Certificate", "How long the one of the replica whose ends first is still valid.", "s",
               Query(f"min by (namespace) (finetune_certificate_expiration_timestamp_seconds{{{_OPERATORS}}}) - time()",
                     "{{namespace}}"),
               colors=[(None, "red"), (14 * 86400, "green")]),
        figure("Jobs waiting in the workqueue", "Keys that no worker has taken yet.", "none",
               Query(f"sum(workqueue_depth{{{_QUEUE}}})")),
        figure("Workers at work", "Share of the workers that are busy now.", "percentunit",
               Query(f"sum(controller_runtime_active_workers{{{_CONTROLLER}}})"
                     f" / sum(controller_runtime_max_concurrent_reconciles{{{_CONTROLLER}}})"), span=3),
        figure("Oldest work", "How long the reconcile that has taken longest so far has been going on.", "s",
               Query(f"max(workqueue_longest_running_processor_seconds{{{_QUEUE}}})"), span=3),
        figure("Failed reconciles", "Share of reconciles, in the range shown.", "percentunit",
               Query(f"(sum(increase(controller_runtime_reconcile_errors_total{{{_CONTROLLER}}}[$__range]))"
                     " or vector(0))"
                     f" / sum(increase(controller_runtime_reconcile_total{{{_CONTROLLER}}}[$__range]))"),
               colors=[(None, "green"), (0.01, "orange"), (0.1, "red")], span=3),
        figure("Retries", "Keys queued again after a failure, in the range shown.", "none",
               Query(f"sum(increase(workqueue_retries_total{{{_QUEUE}}}[$__range])) or vector(0)"), span=3),
        graph("Reconciles", "By result.", "ops",
              Query(f"sum by (result) (rate(controller_runtime_reconcile_total{{{_CONTROLLER}}}[$__rate_interval]))",
                    "{{result}}")),
        slow("Time of a reconcile", "With the requests to the API server.",
             "controller_runtime_reconcile_time_seconds", _CONTROLLER),
        slow("Time in the workqueue", "From a change until a worker takes it.",
             "workqueue_queue_duration_seconds", _QUEUE),
        graph("Workqueue", "Keys that came in, and keys that wait.", "none",
              Query(f"sum(rate(workqueue_adds_total{{{_QUEUE}}}[$__rate_interval]))", "added a second"),
              Query(f"sum(workqueue_depth{{{_QUEUE}}})", "waiting")),
        # Every controller in the cluster may have requests under this name.
        graph("Requests to the API server", "By answer; <error> is none at all.", "reqps",
              Query(f"sum by (code) (rate(rest_client_requests_total{{{_OPERATORS}}}[$__rate_interval])"
                    f" and on (instance) leader_election_master_status{{{_QUEUE}}})", "{{code}}")),
        graph("Progress reports", "By answer: 401 and 403 are refused tokens, 429 comes too often.", "reqps",
              Query(f"sum by (code) (rate(finetune_progress_reports_total{{{_OPERATORS}}}[$__rate_interval]))",
                    "{{code}}")),
    ]  # fmt: skip
