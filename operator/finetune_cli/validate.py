"""`finetune validate`: what is wrong with manifests, by field."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import ManifestInvalid, load_jobs
from finetune_api.problems import printable
from finetune_cli.streams import lasting


def validate(manifests: Sequence[Path]) -> int:
    """Check every manifest; problems go to stderr, one a line. The exit code tells even if nobody reads."""
    code = ExitCode.COMPLETE
    output, errors = lasting(sys.stdout), lasting(sys.stderr)
    for path in manifests:
        try:
            for job in load_jobs(path):
                print(printable(f"{path}: {job.kind} {job.metadata.name} is valid"), file=output, flush=True)
        except ManifestInvalid as error:
            print(error, file=errors, flush=True)
            code = ExitCode.SPEC_INVALID
    return code
