"""What a job or a cluster says is shown as it is: neither markup nor a command to the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from contract_cases import valid_job
from finetune_api.documents import write_document
from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import parse_job
from finetune_api.v1alpha1.status import Progress
from finetune_cli import main as local_command
from finetune_cli.display import make_display
from finetune_cli.kubectl import main as kubectl_command
from finetune_cli.kubectl.cluster import Cluster
from finetune_cli.local import Placed, place
from finetune_cli.report import print_results
from finetune_cli.run import LocalJob, explain
from kubectl_records import Recorded, job
from plan_builders import make_word
from status_samples import full_status

SAID = "Failed: [/red] row 3 \x1b]0;title\x07 and \x1b[2J"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_neither_brackets_nor_escapes_are_obeyed(is_terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=is_terminal, width=200)
    with make_display("job", "accuracy", console) as display:
        display.state(SAID)
        display.note(SAID)
    shown = written.getvalue()
    assert shown.count("Failed: [/red] row 3 \\x1b]0;title\\x07 and \\x1b[2J") >= 2
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize("name", ["router", "sentiment-full-distributed", "x" * 37])
def test_in_a_narrow_terminal_the_name_is_cut_and_bar_and_figures_are_not(name: str) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system=None, width=80)
    with make_display(name, "accuracy", console) as display:
        display.progress(Progress(step=400, total_steps=2370, percent=16, loss=0.12345, eta_seconds=4000))
        display.evaluation({"metrics": {"accuracy": 0.91}})
    shown = written.getvalue().rpartition("\x1b[2K")[2]
    assert re.search(rf"^{name[:10]}\S*  ━+╸? +400/2370 loss 0\.1235 accuracy 0\.9100 ETA 1:06:40\n", shown), shown


def placed_in(directory: Path, output: str = "pvc://models/tuned") -> Placed:
    body = valid_job()
    body["spec"]["output"] = {"uri": output}
    placed = place(parse_job(body), directory / "job.yaml", {}, directory, fresh=False)
    placed.directory.mkdir(parents=True)
    return placed


def test_what_a_trainer_says_last_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    placed = placed_in(tmp_path)
    placed.termination_file.write_text(make_word(ExitCode.INTERNAL_ERROR, SAID, hint=SAID))
    placed.log_file.write_text(f"Traceback\n{SAID}\n")
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    explain(LocalJob(placed), ExitCode.INTERNAL_ERROR, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.count("Failed: [/red] row 3 \\x1b]0;title\\x07 and \\x1b[2J") == 3
    assert "\x1b" not in shown


def test_a_path_in_the_table_of_results_is_no_markup(tmp_path: Path) -> None:
    result = full_status().result
    assert result is not None
    console = Console(file=io.StringIO(), width=400)
    print_results(console, [(placed_in(tmp_path, "file:///models/[red]\x9b2J/tuned"), "Full", result)])
    assert isinstance(console.file, io.StringIO)
    assert "/models/[red]\\x9b2J/tuned" in console.file.getvalue()


def test_what_a_cluster_cannot_answer_is_shown_and_not_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Recorded(job(phase="Failed", reason="DataInvalid", message=SAID))
    monkeypatch.setattr(Cluster, "connect", lambda *_: cluster)
    assert kubectl_command.main(["result", "router"]) == 1
    shown = capsys.readouterr().err
    assert "DataInvalid: Failed: [/red] row 3 \\x1b]0;title\\x07 and \\x1b[2J" in shown
    assert "\x1b" not in shown


def test_what_a_manifest_says_is_shown_and_not_obeyed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URI may hold the sign that some terminals take for the beginning of a command."""
    monkeypatch.chdir(tmp_path)
    manifests = []
    for name in ("one", "two"):
        body = valid_job()
        body["metadata"]["name"], body["spec"]["output"] = name, {"uri": "s3://bucket/\x9b2Jtuned"}
        (tmp_path / f"{name}.yaml").write_text(write_document(body))
        manifests.append(f"{name}.yaml")
    assert local_command.main(["run", *manifests, "--metrics-port", "0"]) == ExitCode.SPEC_INVALID
    shown = capsys.readouterr().err
    assert "write the same output, s3://bucket/\\x9b2Jtuned; give each of them" in shown
    assert "\x9b" not in shown
