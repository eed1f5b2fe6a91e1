"""The `finetune` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import ManifestInvalid
from finetune_api.problems import printable
from finetune_cli.extras import lack_of
from finetune_cli.local import LocalRefused
from finetune_cli.volumes import directory_of, parse_volume

_EPILOG = "Exit codes are listed in docs/exit-codes.md; 0 means that every job is Complete."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    try:
        if options.command == "validate":
            from finetune_cli.validate import validate

            return validate(options.manifests)
        if lack := lack_of(("rich", "prometheus_client"), "cli,trainer"):
            raise LocalRefused(lack, ExitCode.INTERNAL_ERROR)
        from finetune_cli.run import run

        return run(options)
    except ManifestInvalid as error:
        print(error, file=sys.stderr)
        return ExitCode.SPEC_INVALID
    except LocalRefused as error:
        print(printable(f"finetune: {error}"), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:  # before a job could have started
        return ExitCode.STOPPED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says. Ends the process with 2 when it is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    claims = [claim for claim, _ in getattr(options, "volume", ())]
    if repeated := next((claim for claim in claims if claims.count(claim) > 1), None):
        parser.error(f"argument --volume: the claim {repeated!r} is given twice")
    return options


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
        type=parse_volume,
        metavar="CLAIM=DIRECTORY",
        help="where pvc://CLAIM/... is on this machine; made if jobs only write there",
    )
    run.add_argument(
        "--work-dir", type=directory_of, default=Path(".finetune"), metavar="DIRECTORY",
        help="checkpoints and logs, in a folder a job (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--metrics-port", type=_port, default=9464, metavar="PORT",
        help="serve Prometheus metrics on 127.0.0.1 at this port, or at a free one if it is 0 or in use "
        "(default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--fresh",
        action="store_true",
        help="forget earlier runs of these jobs: start at step 0; a model stays until the new one is finished",
    )
    validate = commands.add_parser("validate", help="check manifests", description="Says what is wrong, by field.")
    validate.add_argument("manifests", nargs="+", type=Path, metavar="JOB.yaml")
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
