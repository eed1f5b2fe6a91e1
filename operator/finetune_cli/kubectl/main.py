"""The `kubectl finetune` command: kubectl runs it when it is on the PATH as kubectl-finetune."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_cli.extras import lack_of

if TYPE_CHECKING:
    from finetune_cli.kubectl.cluster import Cluster

_INTERRUPTED = 128 + signal.SIGINT
_EPILOG = (
    "The exit code of watch is the first failed job's, as in docs/exit-codes.md, and 0 when all are Complete. Every "
    "other command ends with 0, or with 1 when the cluster cannot answer."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if lack := lack_of(("kubernetes", "rich"), "cli"):
        print(f"kubectl finetune: {lack}", file=sys.stderr)
        return ExitCode.INTERNAL_ERROR
    from finetune_cli.kubectl.cluster import Cluster, ClusterProblem  # takes most of a second
    from finetune_cli.text import plain

    try:
        return _run(options, Cluster.connect(options.kubeconfig, options.context))
    except ClusterProblem as problem:
        print(plain(f"kubectl finetune: {problem}"), file=sys.stderr)
        return ExitCode.INTERNAL_ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `| head`
        sys.stderr.close()  # or Python complains at the end
        return ExitCode.COMPLETE


def _run(options: argparse.Namespace, cluster: Cluster) -> int:
    from finetune_cli.text import make_console

    console = make_console()
    everywhere = getattr(options, "all_namespaces", False)
    namespace: str = options.namespace or cluster.namespace
    match options.command:
        case "watch":
            from finetune_cli.kubectl.watch import watch

            return watch(cluster, None if everywhere else namespace, options.name, console)
        case "logs":
            from finetune_cli.kubectl.logs import logs

            return logs(cluster, namespace, options.name, console, follow=options.follow, tail=options.tail)
        case "describe":
            from finetune_cli.kubectl.describe import describe

            return describe(cluster, namespace, options.name, console)
        case "result":
            from finetune_cli.kubectl.result import result

            return result(cluster, namespace, options.name, console)
        case _:
            from finetune_cli.kubectl.listing import list_jobs

            return list_jobs(cluster, None if everywhere else namespace, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubectl finetune",
        description="The FineTuneJobs of a cluster.",
        epilog=_EPILOG,
        parents=[_where(None)],
    )
    common = _where(argparse.SUPPRESS)  # what is not given after the command leaves what was given before it
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, parents=[common], epilog=_EPILOG)

    listing = command("list", "every job on a line")
    watch = command("watch", "live progress of a job, or of all that have not ended, until they have")
    watch.add_argument("name", nargs="?", metavar="NAME")
    for each in (listing, watch):
        each.add_argument("-A", "--all-namespaces", action="store_true", help="the jobs of all namespaces")
    logs = command("logs", "what the trainers of the newest attempt print")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="wait for the pods to start, and go on until they end"
    )
    logs.add_argument("--tail", type=int, metavar="LINES", help="only this many of the last lines")
    describe = command("describe", "where a job stands, why, and what to do")
    result = command("result", "what tuning did, what was forgotten, and how to load the model")
    for each in (logs, describe, result):
        each.add_argument("name", metavar="NAME")
    return parser


def _where(default: str | None) -> argparse.ArgumentParser:
    """The options that say where to look, as kubectl takes them: before the command and after it."""
    options = argparse.ArgumentParser(add_help=False, argument_default=default)
    options.add_argument("-n", "--namespace", help="the jobs' namespace (default: the context's)")
    options.add_argument("--context", help="the kubeconfig's context (default: the current one)")
    options.add_argument("--kubeconfig", help="the kubeconfig (default: KUBECONFIG, then ~/.kube/config)")
    return options


if __name__ == "__main__":
    sys.exit(main())
