"""The committed dashboards are what their source makes, and ask only for metrics that there are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.prometheus import program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "helm" / "finetune-operator" / "files" / "dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
DOCUMENTED = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE))
GRID_WIDTH = 24


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def expressions(name: str) -> Iterator[str]:
    return (target["expr"] for panel in panels(name) for target in panel["targets"])


def metrics_in(expression: str) -> set[str]:
    """The names of metrics: words before a selector or a range."""
    names = re.findall(r"\b([a-z][a-z_]+)(?=[{\[])", expression)
    return {re.sub(r"_bucket$", "", name) for name in names}


def test_there_are_a_dashboard_of_all_jobs_and_one_of_a_job() -> None:
    assert {name: board["uid"] for name, board in DASHBOARDS.items()} == {
        "fleet": "finetune-fleet",
        "job": "finetune-job",
    }


def test_committed_dashboards_are_what_the_source_makes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    subprocess.run([sys.executable, "-m", "dashboards", str(tmp_path)], env=environment, check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in FOLDER.iterdir()}, "run `make generate`"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_asks_for_documented_metrics(name: str) -> None:
    for expression in expressions(name):
        asked = metrics_in(expression)
        assert asked, expression
        assert asked <= DOCUMENTED, expression


def test_every_metric_of_jobs_is_on_a_dashboard() -> None:
    shown = {metric for name in DASHBOARDS for expression in expressions(name) for metric in metrics_in(expression)}
    assert {metric for metric in DOCUMENTED if metric.startswith("finetune_")} <= shown


def ended(values: str, instance: str = "a") -> dict[str, str]:
    labels = f'namespace="team",outcome="Failed",reason="StorageFull",instance="{instance}"'
    return {"series": f"finetune_jobs_ended_total{{{labels}}}", "values": values}


@pytest.mark.parametrize(
    ("series", "count"),
    [
        ([ended("_x70 1 2x60")], 2),
        ([ended("5x70 6 7x60")], 2),
        ([ended("5x130")], 0),
        ([ended("_x70 1 2x9 stale"), ended("_x85 1x60", "b")], 3),
        ([ended("5x70 6x9 stale"), ended("_x85 1x60", "b")], 2),
        ([ended("5x70 stale")], 0),
        ([ended("5x30 stale"), ended("_x35 2x100", "b")], 0),
    ],
    ids=[
        "a series that is new", "one that was there", "one that stands still",
        "its replica is replaced", "its replica is replaced, and had counted before",
        "its replica is gone, and had counted before only",
        "its replica was replaced before",
    ],
)  # fmt: skip
def test_what_was_counted_within_the_hour_is_shown_whoever_counted_it(
    series: list[dict[str, str]], count: float, tmp_path: Path
) -> None:
    [panel] = [panel for panel in panels("fleet") if panel["title"] == "Jobs that ended"]
    expression = panel["targets"][0]["expr"].replace("$namespace", ".*")
    # `increase` reckons to the ends of the window, and so makes a little more of it.
    question = {"expr": f"round({expression})", "eval_time": "105m"}
    answer = [{"labels": '{outcome="Failed"}', "value": count}]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [{**question, "exp_samples": answer}]}
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_job_that_goes_on_from_a_checkpoint_is_not_shown_faster_than_it_is(tmp_path: Path) -> None:
    [panel] = [panel for panel in panels("job") if panel["title"] == "Steps a second"]
    shown = (
        panel["targets"][0]["expr"].replace("$namespace", "t").replace("$job", "j").replace("$__rate_interval", "2m")
    )
    # A step each 30 s; killed at step 1000, it goes on from the checkpoint at step 801.
    [metric] = metrics_in(shown)
    series = [{"series": f'{metric}{{namespace="t",name="j"}}', "values": "990+1x10 801+1x20"}]
    moments = [f"{seconds}s" for seconds in range(240, 600, 30)]
    too_fast = [{"expr": f"({shown}) > 0.034", "eval_time": at, "exp_samples": []} for at in moments]
    steady = [
        {"expr": f"round(1000 * {shown})", "eval_time": at, "exp_samples": [{"labels": "{}", "value": 33}]}
        for at in ("4m", "9m")
    ]
    test = {"interval": "30s", "input_series": series, "promql_expr_test": [*too_fast, *steady]}
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [], "evaluation_interval": "30s", "tests": [test]}))
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_says_what_it_shows_and_asks_the_chosen_data_source(name: str) -> None:
    assert (
        DASHBOARDS[name]["templating"]["list"][0] | {"name": "datasource", "type": "datasource"}
        == (DASHBOARDS[name]["templating"]["list"][0])
    )
    for panel in panels(name):
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_fit_the_grid_side_by_side(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= GRID_WIDTH, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_an_id_each(name: str) -> None:
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
