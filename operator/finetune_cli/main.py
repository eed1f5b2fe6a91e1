"""The `finetune` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import ManifestInvalid
from finetune_cli.local import LocalRefused

_EPILOG = "Exit codes are listed in docs/exit-codes.md; 0 means that every job is Complete."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "validate":
            from finetune_cli.validate import validate

            return validate(options.manifests)
        from finetune_cli.run import run

        return run(options)
    except ManifestInvalid as error:
        print(error, file=sys.stderr)
        return ExitCode.SPEC_INVALID
    except LocalRefused as error:
        print(f"finetune: {error}", file=sys.stderr)
        return ExitCode.SPEC_INVALID


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune", description="Fine-tuning jobs on this machine.", epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run the FineTuneJobs of manifests on this machine",
        description="Runs the same manifests that the operator takes, one after the other. Ctrl-C saves a checkpoint "
        "and stops; the same command goes on from there.",
        epilog=_EPILOG,
    )
    run.add_argument("manifests", nargs="+", type=Path, metavar="JOB.yaml")
    run.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="CLAIM=DIRECTORY",
        help="where pvc://CLAIM/... is on this machine",
    )
    run.add_argument(
        "--work-dir", type=Path, default=Path(".finetune"), metavar="DIRECTORY",
        help="checkpoints and logs, in a folder a job (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--metrics-port", type=int, default=9464, metavar="PORT",
        help="serve Prometheus metrics on 127.0.0.1 at this port; 0 picks a free one (default: %(default)s)",
    )  # fmt: skip
    run.add_argument("--fresh", action="store_true", help="forget earlier runs of these jobs: start at step 0")
    validate = commands.add_parser("validate", help="check manifests", description="Says what is wrong, by field.")
    validate.add_argument("manifests", nargs="+", type=Path, metavar="JOB.yaml")
    return parser


if __name__ == "__main__":
    sys.exit(main())
