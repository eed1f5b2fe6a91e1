"""The launcher: a process for each GPU, one exit code that tells why, and nobody left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.scheduling import ResourcesSpec
from finetune_trainer import launch as launching
from finetune_trainer import rendezvous
from finetune_trainer.device import pick_device
from finetune_trainer.errors import TrainerError
from finetune_trainer.launch import End, launch, num_processes
from finetune_trainer.rendezvous import ALONE, Place, find_place
from finetune_trainer.stop import StopFlag
from trainer import ranks
from trainer.processes import run_trainer
from trainer.ranks import curve, on_nodes
from trainer.runs import notes, output
from trainer.tiny import FULL, make_run

LOST = int(ExitCode.PEER_LOST)


def ending(*behaviours: str) -> list[str]:
    """A command whose process of each rank runs the code given for it."""
    code = f"import os, signal, sys, time\nexec({list(behaviours)!r}[int(os.environ['RANK'])])"
    return [sys.executable, "-S", "-c", code]


def launched(*behaviours: str, stop: StopFlag | None = None) -> End:
    return launch(ending(*behaviours), ALONE, len(behaviours), stop or StopFlag())


@pytest.mark.parametrize(
    ("behaviours", "code"),
    [
        (["sys.exit(0)", "sys.exit(0)"], 0),
        (["time.sleep(0.4); sys.exit(44)", "sys.exit(11)"], 11),
        (["sys.exit(44)", "time.sleep(0.4); sys.exit(15)"], 15),
        (["time.sleep(0.4); sys.exit(40)", "sys.exit(16)"], 16),
        (["sys.exit(0)", "sys.exit(44)"], LOST),
        (["time.sleep(0.4); sys.exit(44)", "os.kill(os.getpid(), signal.SIGKILL)"], 137),
        (["sys.exit(143)", "time.sleep(0.4); sys.exit(143)"], 143),
        (["sys.exit(1)", "time.sleep(0.4); sys.exit(44)"], 1),
    ],
)
def test_the_first_that_failed_for_its_own_reason_decides(behaviours: list[str], code: int) -> None:
    assert launched(*behaviours).code == code


def test_the_last_word_is_that_of_the_process_that_decides() -> None:
    word = '{"exitCode": %d, "reason": "x", "message": "%s"}'
    say = f"open(os.environ['TERMINATION_MESSAGE_PATH'], 'w').write('{word}')"
    lost, own = say % (44, "lost"), say % (11, "own")
    end = launched(f"{lost}; sys.exit(44)", f"time.sleep(0.3); {own}; sys.exit(11)")
    assert end.termination is not None
    assert end.termination.message == "own"
    assert launched("sys.exit(1)", "sys.exit(44)").termination is None


def test_processes_of_one_node_that_lost_each_other_count_as_a_try() -> None:
    """No other node's can: the pod would be remade for ever, and keep its GPUs."""
    word = '{"exitCode": 44, "reason": "PeerLost", "message": "it ran out of shared memory"}'
    say = f"open(os.environ['TERMINATION_MESSAGE_PATH'], 'w').write('{word}')"
    end = launched(f"{say}; sys.exit(44)", "time.sleep(0.3); sys.exit(44)")
    assert end.code == ExitCode.NETWORK_UNAVAILABLE
    assert end.termination is not None
    assert (end.termination.exit_code, end.termination.reason) == (end.code, "NetworkUnavailable")
    assert end.termination.message == "it ran out of shared memory"
    assert "sharedMemory" in end.termination.hint


def test_a_stopped_node_is_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes may lose each other as they end."""
    monkeypatch.setattr(launching, "GRACE_SECONDS", 0.5)
    stop = StopFlag()
    threading.Timer(0.7, lambda: setattr(stop, "is_set", True)).start()
    handled = "signal.signal(15, {}); time.sleep(60)"
    behaviours = [handled.format(how) for how in ("signal.SIG_IGN", "lambda *_: sys.exit(44)")]
    assert launched(*behaviours, stop=stop).code == LOST


@pytest.mark.parametrize("have_met", [True, False])
def test_the_first_node_counts_a_meeting_that_did_not_come_about(have_met: bool) -> None:
    """Once all have met, it may be another node that was lost, and that one's end counts."""
    node = Place(rank=0, size=2, address="localhost", port=ranks.free_port())
    meeting = threading.Thread(target=meet, args=(node,)) if have_met else threading.Thread()
    meeting.start()
    end = launch(ending(*["time.sleep(2); sys.exit(44)"] * 2), node, 2, StopFlag())
    meeting.join()
    assert end.code == (LOST if have_met else ExitCode.NETWORK_UNAVAILABLE)


def meet(node: Place) -> None:
    store = rendezvous._connect(node, time.monotonic() + 60, StopFlag())
    store.set(rendezvous._MET, "")


def test_each_process_is_told_its_place(tmp_path: Path) -> None:
    write = f"open('{tmp_path}/' + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in names))"
    names = "names = ['LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR']"
    behaviours = [f"{names}; {write}"] * 2
    assert launched(*behaviours).code == 0
    assert (tmp_path / "0").read_text() == "0 2 127.0.0.1"
    assert (tmp_path / "1").read_text() == "1 2 127.0.0.1"
    second = Place(rank=1, size=2, address="10.0.0.1", port=29500)
    assert launch(ending("", "", *behaviours), second, 2, StopFlag()).code == 0
    assert (tmp_path / "3").read_text() == "1 4 10.0.0.1"


def test_one_that_hangs_after_another_failed_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's collective may wait for a lost peer for minutes."""
    monkeypatch.setattr(launching, "GRACE_SECONDS", 0.5)
    start = time.monotonic()
    assert launched("time.sleep(60)", "sys.exit(16)").code == 16
    assert launched("time.sleep(60)", "sys.exit(44)").code == ExitCode.NETWORK_UNAVAILABLE
    assert time.monotonic() - start < 20


def test_a_stop_is_passed_on_and_all_may_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may take longer than the grace that follows a failure: the first one, which writes."""
    monkeypatch.setattr(launching, "GRACE_SECONDS", 0.2)
    handler = "signal.signal(15, lambda *_: (time.sleep({}), sys.exit(143))); time.sleep(60)"
    stop = StopFlag()
    threading.Timer(0.7, lambda: setattr(stop, "is_set", True)).start()
    assert launched(handler.format(1.5), handler.format(0), stop=stop).code == 143


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher in a process of its own, whose children write down their numbers and wait as trainers do."""
    child = f"""
        import os, sys, time
        from pathlib import Path
        from finetune_trainer.launch import end_with_launcher
        end_with_launcher()
        Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(str(os.getpid()))
        time.sleep(100)
    """
    code = f"""
        import sys
        from finetune_trainer.launch import launch
        from finetune_trainer.rendezvous import ALONE
        from finetune_trainer.stop import StopFlag
        launch([sys.executable, "-c", {textwrap.dedent(child)!r}], ALONE, 2, StopFlag())
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_nobody_outlives_a_launcher_that_is_killed(launcher: subprocess.Popen[bytes], tmp_path: Path) -> None:
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), 60)
    children = [int(file.read_text()) for file in files]
    assert all(map(is_alive, children))
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(map(is_alive, children)), 10)


def wait_until(holds: object, seconds: float) -> None:
    assert callable(holds)
    ends_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child whose parent has not asked for its end yet is no more than a name.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def find_gpus(patch: pytest.MonkeyPatch, number: int, can_compute: bool = True) -> None:
    """Let PyTorch find so many, which it counts even with a driver that it cannot compute by."""
    patch.setattr(torch.cuda, "device_count", lambda: number)
    patch.setattr(torch.cuda, "is_available", lambda: can_compute and number > 0)


@pytest.mark.parametrize(
    ("nodes", "asked", "found", "number"),
    [(1, 0, 0, 1), (1, 1, 0, 1), (1, 1, 8, 1), (1, 4, 4, 4), (1, 4, 2, 2), (1, 4, 0, 1), (2, 0, 0, 1), (2, 4, 4, 4)],
)
def test_one_process_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, nodes: int, asked: int, found: int, number: int
) -> None:
    find_gpus(monkeypatch, found)
    assert num_processes(ResourcesSpec(nodes=nodes, gpus_per_node=asked)) == number


@pytest.mark.parametrize(("nodes", "has_gpus"), [(2, False), (1, True)], ids=["nodes", "pod"])
def test_too_few_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, nodes: int, has_gpus: bool) -> None:
    """Nodes would each count the processes of the job by what they have; a pod would hold what it cannot use."""
    find_gpus(monkeypatch, 3)
    with pytest.raises(TrainerError, match=r"spec\.resources\.gpusPerNode is 4, but PyTorch finds 3"):
        num_processes(ResourcesSpec(nodes=nodes, gpus_per_node=4), has_gpus)
    assert num_processes(ResourcesSpec(nodes=nodes, gpus_per_node=3), has_gpus) == 3


@pytest.mark.parametrize("asked", [1, 2])
def test_gpus_whose_driver_is_too_old_are_none(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    """A pod would hold them, and train on its CPUs."""
    find_gpus(monkeypatch, 2, can_compute=False)
    resources = ResourcesSpec(gpus_per_node=asked)
    for refused in (lambda: num_processes(resources, has_gpus=True), lambda: pick_device(asked, 0, has_gpus=True)):
        with pytest.raises(TrainerError, match=f"gpusPerNode is {asked}, but PyTorch finds 0 on this node") as told:
            refused()
        assert told.value.code == ExitCode.SPEC_INVALID
    assert num_processes(resources) == 1
    assert pick_device(asked) == torch.device("cpu")


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    find_gpus(monkeypatch, 2)
    assert pick_device(2, 1, has_gpus=True) == torch.device("cuda", 1)
    assert pick_device(0, 0) == torch.device("cpu")
    with pytest.raises(TrainerError, match="PyTorch finds 2"):
        pick_device(3, 2, has_gpus=True)


@pytest.mark.parametrize(("is_built", "hint"), [(True, "nvidia-smi"), (False, "an image with PyTorch's CUDA build")])
def test_gpus_that_are_not_found_are_laid_to_the_image_where_it_is_for_cpus(
    monkeypatch: pytest.MonkeyPatch, is_built: bool, hint: str
) -> None:
    find_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: is_built)
    with pytest.raises(TrainerError) as refused:
        num_processes(ResourcesSpec(gpus_per_node=1), has_gpus=True)
    assert hint in refused.value.hint
    assert refused.value.hint.endswith("or use 0 to train on CPUs")


def test_places() -> None:
    one, two = ResourcesSpec(), ResourcesSpec(nodes=2)
    assert find_place(one, {}) == ALONE
    assert find_place(one, {"JOB_COMPLETION_INDEX": "0"}) == ALONE
    pod = {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "job-0.job", "MASTER_PORT": "29500"}
    assert find_place(two, pod) == Place(1, 2, 0, "job-0.job", 29500)
    child = Place(3, 4, 1, "job-0.job", 29500, has_launcher=True)
    assert find_place(two, {**pod, **child.environment()}) == child


@pytest.mark.slow
def test_a_run_through_the_launcher(still_bert: Path, tmp_path: Path) -> None:
    """Two real trainers on CPUs, as on two GPUs: the curve of one, and one model, reloaded and compared."""
    training = {"batchSize": 8, "maxSteps": 4, "learningRate": "2e-3"}
    alone = on_nodes(make_run(tmp_path / "1", still_bert, FULL, training=training), 1)
    assert run_trainer(alone, ranks.every_step) == ExitCode.COMPLETE
    run = on_nodes(make_run(tmp_path / "2", still_bert, FULL, training=training), 1)
    run_file = tmp_path / "run.json"
    run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    end = launch([sys.executable, "-m", "finetune_trainer", str(run_file)], ALONE, 2, StopFlag())
    assert end.code == ExitCode.COMPLETE
    assert end.termination is not None
    assert end.termination.result is not None
    assert len([note for note in notes(run) if "in each of 2 processes" in note]) == 1
    assert (output(run) / "model.safetensors").exists()
    # Without `every_step` some of the steps are told as one: what is left are the evaluations.
    before, after = [[point for point in curve(one) if "norm" not in point] for one in (alone, run)]
    assert len(before) == len(after) == 2
    for found, wanted in zip(after, before, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_a_stop_of_the_launcher_stops_the_trainers(still_bert: Path, tmp_path: Path) -> None:
    training = {"batchSize": 8, "maxSteps": 100_000, "learningRate": "2e-3"}
    run = on_nodes(make_run(tmp_path, still_bert, FULL, training=training), 1)
    run_file = tmp_path / "run.json"
    run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    stop = StopFlag()

    def stop_when_training() -> None:
        wait_until(lambda: Path(run.work_dir, "progress.jsonl").exists() and len(curve(run)) > 2, 90)
        stop.is_set = True

    watcher = threading.Thread(target=stop_when_training)
    watcher.start()
    end = launch([sys.executable, "-m", "finetune_trainer", str(run_file)], ALONE, 2, stop)
    watcher.join()
    assert end.code == ExitCode.STOPPED
    assert end.termination is not None
    assert "a checkpoint is saved" in end.termination.message
