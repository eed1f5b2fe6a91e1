"""Writes metrics a piece at a time: thousands of jobs make a second of work, and nothing else may wait that long.

A thread would not do: each system call of the event loop would then wait for the interpreter's lock, and a report needs
a dozen of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_PIECE = 100
"""Samples: a millisecond or two of work."""


def expose(registry: Collector, encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
    """What `encode` makes of the registry, in pieces.

    No family may have `_created` samples or a gauge histogram's sum and count: the classic text moves them to the
    family's end.
    """
    end = encode(_Families())  # OpenMetrics ends with a mark, and only the whole may
    for family in registry.collect():
        samples = iter(family.samples)
        head = encode(_Families(_with(family, [])))
        yield head.removesuffix(end)
        while piece := list(islice(samples, _PIECE)):
            yield encode(_Families(_with(family, piece)))[len(head) - len(end) :].removesuffix(end)
    if end:
        yield end


class _Families(Collector):
    """A registry of a few families."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _with(family: Metric, samples: list[Sample]) -> Metric:
    """The family with other samples."""
    part = Metric(family.name, family.documentation, family.type, family.unit)
    part.samples = samples
    return part
