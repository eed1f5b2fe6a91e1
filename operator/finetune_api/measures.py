"""Names of what is measured besides a task's own metrics, as they stand in records, in status and in series."""

from __future__ import annotations

DIVERGENCE = "klToBase"
"""How far the predictions are from those before training: KL(tuned || base), in nats a prediction."""


def on_retention(metric: str) -> str:
    """The name of a metric that was measured on the retention rows: `retentionAccuracy`."""
    return f"retention{metric[0].upper()}{metric[1:]}"
