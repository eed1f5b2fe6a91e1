"""Makes the run of a job: the spec, and where its pods find what its URIs name."""

from __future__ import annotations

from finetune_api.run import Run
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.plan import names


def make_run(namespace: str, name: str, uid: str, spec: FineTuneJobSpec) -> Run:
    """The run that the trainer is given."""
    return Run(
        name=name,
        namespace=namespace,
        uid=uid,
        spec=spec,
        volumes={claim: names.claim_path(claim) for claim in names.claims(spec)},
        work_dir=names.work_dir(spec, uid),
        has_gpus=spec.resources.gpus_per_node > 0,
    )
