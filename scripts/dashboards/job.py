"""The dashboard of one job."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.parts import JOB_UID, Panel, Query, figure, graph, make_dashboard, variable

_JOB = 'namespace="$namespace",name="$job"'
_LOSSES = "loss|perplexity|entropy|mae|mse|rmse|wer|cer"
"""Evaluation metrics that are the better the smaller, and may be above 1."""


def job_dashboard() -> Dashboard:
    """How far a job is, what it learns, what it forgets, what it costs."""
    return make_dashboard(
        JOB_UID,
        "Fine-tuning / job",
        "One FineTuneJob",
        [
            variable("namespace", "Namespace", "label_values(finetune_job_info, namespace)"),
            variable("job", "Job", 'label_values(finetune_job_info{namespace="$namespace"}, name)'),
        ],
        {
            "Progress": _progress(),
            "Training": _training(),
            "Evaluation": _evaluation(),
            "Forgetting": _forgetting(),
            "Speed and safety": _speed(),
        },
    )


def _of(metric: str, by: str = "", /, **labels: str) -> str:
    """A metric of the job, without the labels of whoever scraped it."""
    more = "".join(f",{label}{matcher}" for label, matcher in labels.items())
    return f"max{f' by ({by})' if by else ''} (finetune_job_{metric}{{{_JOB}{more}}})"


def _progress() -> list[Panel]:
    phase = f"max by (finetune_job_phase) (finetune_job_phase{{{_JOB}}} == 1)"
    about = "{{task}}, {{strategy}}, {{model}}"
    return [
        figure("Phase", "Where the job stands.", "none", Query(phase, "{{finetune_job_phase}}"), names_only=True,
               span=3),
        figure("What", "Task, strategy, model.", "none", Query(_of("info", "task, strategy, model"), about),
               span=7, names_only=True),
        figure("Started", "When its first trainer started.", "dateTimeFromNow",
               Query(f"1000 * {_of('start_time_seconds')}"), span=3),
        figure("Progress", "Steps done of those planned.", "percentunit", Query(_of("progress_ratio")), span=3),
        figure("Steps", "Done, and planned.", "none",
               Query(_of("steps_done"), "done"), Query(_of("steps_planned"), "planned")),
        figure("Time to go", "Expected, to the end of training.", "s", Query(_of("eta_seconds"))),
    ]  # fmt: skip


def _training() -> list[Panel]:
    return [
        graph("Loss", "Training loss, a mean over the last steps.", "none", Query(_of("loss"), "loss"), span=12),
        graph("Terms of the loss", "Its weighted parts, where there is more than one: distillation, penalties.", "none",
              Query(_of("loss_term", "term"), "{{term}}"), span=12),
        graph("Learning rate", "Of the body.", "sci", Query(_of("learning_rate"), "learning rate"), span=12),
        graph("Norm of the gradient", "Before clipping. A rise before the loss rises foretells divergence.", "none",
              Query(_of("grad_norm"), "norm"), span=12),
    ]  # fmt: skip


def _evaluation() -> list[Panel]:
    return [
        graph("Evaluation", "The newest evaluation; higher is better.", "none",
              Query(_of("eval_metric", "metric", metric=f'!~"{_LOSSES}"'), "{{metric}}"), span=12),
        graph("Evaluation, losses", "The newest evaluation; lower is better. An evaluation loss that rises while the "
              "training loss falls is overfitting.", "none",
              Query(_of("eval_metric", "metric", metric=f'=~"{_LOSSES}"'), "{{metric}}"),
              Query(_of("loss"), "training loss"), span=12),
    ]  # fmt: skip


def _forgetting() -> list[Panel]:
    return [
        graph("Retention rows", "The newest evaluation on rows of what the model could do before "
              "(evaluation.retention).", "none", Query(_of("retention_metric", "metric"), "{{metric}}")),
        graph("Forgetting", "Of the metric that decides, on the retention rows: its drop since before training (of "
              "loss and perplexity, the relative rise); once Complete also what it was before and after.", "none",
              Query(_of("forgetting", "metric"), "{{metric}}")),
        graph("KL(tuned, base)", "How far predictions on the evaluation rows went from those before training, in nats "
              "a prediction. Of two runs that learn equally well, the smaller forgets less.", "none",
              Query(_of("divergence"), "divergence")),
    ]  # fmt: skip


def _speed() -> list[Panel]:
    # A gauge, which goes back when the job goes on from a checkpoint: less than nothing is then shown as nothing.
    steps = f"max(clamp_min(deriv(finetune_job_steps_done{{{_JOB}}}[$__rate_interval]), 0))"
    return [
        graph("Tokens a second", "Real tokens trained on, without padding.", "none",
              Query(_of("tokens_per_second"), "tokens a second"), span=6),
        graph("Steps a second", "0 while it evaluates, saves or stalls, and when it goes back to a checkpoint.", "none",
              Query(steps, "steps a second"), span=6),
        graph("Peak memory", "Most memory allocated: of the GPU, or of the process when trained on CPU.", "bytes",
              Query(_of("memory_peak_bytes"), "peak"), span=6),
        graph("Age of the checkpoint", "What would be lost if the pod were lost now.", "s",
              Query(_of("checkpoint_age_seconds"), "age"), span=6),
    ]  # fmt: skip
