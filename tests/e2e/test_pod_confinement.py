"""What a process in a training pod can do on a real node: write where it must, and nothing with its token."""

from __future__ import annotations

import json

import pytest

from e2e.jobs import TRAINER_USER, Team
from testbed.client import Object
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

WRITABLE = {"/tmp", "/dev/shm", "/workspace/volumes/models"}  # noqa: S108 - of the pod
READ_ONLY = {
    "/", "/etc", "/usr/lib", "/opt/finetune", "/opt/libraries", "/var", "/root", "/run", "/etc/finetune",
    "/var/run/finetune", "/workspace", "/workspace/volumes/data", "/workspace/volumes/tiny-models",
}  # fmt: skip
SCRIPT = """
import json, os, pathlib, ssl, sys, urllib.error, urllib.request

def can_write(folder):
    try:
        path = pathlib.Path(folder, "probe")
        path.write_text("x")
        path.unlink()
    except OSError:
        return False
    return True

def ask(token):
    headers = {"Authorization": "Bearer " + token} if token else {}
    request = urllib.request.Request(sys.argv[1] + "/api/v1/namespaces/default/pods", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=10, context=ssl._create_unverified_context()).status
    except urllib.error.HTTPError as error:
        return error.code

lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
files = [str(path) for top in ("/var/run", "/run") for path in pathlib.Path(top).rglob("token")]
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16),
    "no_new_privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "writable": [folder for folder in sys.argv[2:] if can_write(folder)],
    "there": [folder for folder in sys.argv[2:] if os.path.isdir(folder)],
    "tokens": sorted({os.path.dirname(path) for path in files}),
    "api": [ask(None), ask(pathlib.Path(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text())],
}))
"""


def look_inside(team: Team, pod: Object) -> Object:
    """What the script finds in the trainer's own container."""
    # By its own address: the Service that leads to it has no endpoint on this node.
    command = ("python", "-c", SCRIPT, team.cluster.server.url, *sorted(WRITABLE | READ_ONLY))
    found: Object = json.loads(team.kubectl("exec", pod["metadata"]["name"], "--container=trainer", "--", *command))
    return found


@pytest.mark.security(3, 4)
def test_trainer_writes_where_it_must_and_its_token_opens_nothing(team: Team, operator: OperatorProcess) -> None:
    team.apply("confined", training={"maxSteps": 1_000_000, "batchSize": 8}, checkpoint={"everySteps": 5})
    team.wait_for_step(operator, "confined", 6)  # it works, and saves
    found = look_inside(team, team.namespace.bound_pod("confined"))
    assert found["uid"] == TRAINER_USER
    assert (found["capabilities"], found["no_new_privileges"], found["seccomp"]) == (0, "1", "2")
    assert set(found["there"]) >= WRITABLE | (READ_ONLY - {"/root"})
    assert set(found["writable"]) == WRITABLE
    assert found["tokens"]
    assert all(folder.removeprefix("/var").startswith("/run/finetune") for folder in found["tokens"])
    assert found["api"] == [403, 401]
