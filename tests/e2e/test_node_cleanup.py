"""A real node leaves nothing on the machine, even when the run that has it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import node_slot
from testbed.client import eventually
from testbed.node_machine import ensure_programs, why_impossible

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TESTS = Path(__file__).resolve().parents[1]
# Takes a place, has namespaces with a process in the node's cgroup, and says which place; then waits to be killed.
RUN = """
import subprocess, sys, time
from testbed import node_slot
from testbed.node_namespaces import NodeNamespaces
with node_slot.taken() as slot, NodeNamespaces(slot).running() as namespaces:
    left = subprocess.Popen(namespaces.command("sleep", "600"))
    for path in slot.cgroups():
        (path / "pod").mkdir()
        if path.parent.name != "cpuset":  # which takes nothing before it has processors
            (path / "pod" / "cgroup.procs").write_text(str(left.pid))
    print(slot.number, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _machine_that_can() -> None:
    if reason := why_impossible():
        pytest.skip(reason)
    ensure_programs()


def test_killed_run_leaves_no_process_and_no_network_and_the_next_run_removes_its_files() -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], cwd=TESTS, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        slot = node_slot.Slot(int(run.stdout.readline()))
        assert slot.container_processes()
        assert Path("/sys/class/net", slot.link).exists()
        run.send_signal(signal.SIGKILL)
    eventually(lambda: not slot.container_processes(), "its processes are gone")
    eventually(lambda: not Path("/sys/class/net", slot.link).exists(), "its network is gone")
    assert slot.folder.exists()

    with node_slot.taken() as again:
        assert again == slot
        assert list(again.folder.iterdir()) == []
    assert not slot.folder.exists()
    assert not [path for path in slot.cgroups() if path.exists()]


def test_two_runs_have_places_of_their_own() -> None:
    with node_slot.taken() as one, node_slot.taken() as other:
        assert one.name != other.name
        assert one.pod_subnet != other.pod_subnet
