"""`finetune validate`: what is wrong with manifests, by field."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import ManifestInvalid, load_jobs


def validate(manifests: Sequence[Path]) -> int:
    """Check every manifest; problems go to stderr, one a line."""
    code = ExitCode.COMPLETE
    for path in manifests:
        try:
            for job in load_jobs(path):
                print(f"{path}: {job.kind} {job.metadata.name} is valid")
        except ManifestInvalid as error:
            print(error, file=sys.stderr)
            code = ExitCode.SPEC_INVALID
    return code
