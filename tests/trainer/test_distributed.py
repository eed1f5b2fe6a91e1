"""Several processes train as one does: the same losses and decisions, one writer, and none that waits for ever."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.distributed import OneProcess, deal, peer_errors
from finetune_trainer.errors import TrainerError
from finetune_trainer.out_of_memory import is_out_of_memory, words_of
from trainer import processes, ranks
from trainer.distilling import distilling, make_teacher, with_pool
from trainer.processes import exit_code, run_trainer
from trainer.ranks import curve, last_word, on_nodes, run_ranks
from trainer.runs import checkpoints, end_state, events, leftovers, notes, output
from trainer.tiny import FULL, HOULSBY, LORA, make_model, make_run, write_rows
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

PRECISE = 1e-5
STEP = "finetune_trainer.optim:learning_rate_factor"
SAVE = "finetune_trainer.checkpoint:CheckpointStore.save"
LOSS = "finetune_trainer.objective:losses.cross_entropy"
LONG_EVALUATION = functools.partial(ranks.slow_batches, 2, 2.5)
"""The second evaluation, that of step 3, takes 15 seconds."""
EVALUATION = 7
"""How often the second process has waited for the first when that evaluation begins."""
PROMPT_SECONDS = 120
"""Far from the patience of ten minutes; the first processes of a busy machine take half a minute to start."""
PENALISED: dict[str, Any] = {"full": {"l2ToStart": "0.01", "gradualUnfreezing": {"everySteps": 3}}}
# 17 rows in batches of 8: the last batch is a single row, so that all processes but one have none.
SHORT: dict[str, Any] = {
    "num_train": 17,
    "training": {"epochs": 2, "batchSize": 8, "microBatchSize": 2, "learningRate": "2e-3"},
    "evaluation": {"everySteps": 3},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("teacher")
    body = make_model(
        directory / "body", num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.export.reload.compare", lambda *_: 0.0)
        return make_teacher(directory / "run", body)


def classifying(strategy: dict[str, Any], directory: Path, model: Path, teacher: Path) -> Run:
    return make_run(directory, model, strategy, **SHORT)


def answering(directory: Path, model: Path, teacher: Path) -> Run:
    """The teacher's answers, also for rows without labels; then steps on labelled rows alone."""
    strategy = distilling(teacher, response={}, taskSteps=2)
    return make_run(directory, teacher, strategy, data=with_pool(directory, 6), **SHORT)


def imitating(directory: Path, model: Path, teacher: Path) -> Run:
    """States and relations that are not between samples."""
    relation = {"distance": "0", "angle": "0", "layers": "1"}
    return make_run(directory, teacher, distilling(teacher, response={}, feature={}, relation=relation), **SHORT)


def writing(directory: Path, model: Path, teacher: Path) -> Run:
    """Rows with many learnt tokens and rows with few, packed."""
    lm = make_lm(directory / "lm")
    training = {"batchSize": 8, "microBatchSize": 3, "learningRate": "2e-3", "epochs": 2}
    rows = make_chats(17)
    return make_lm_run(directory, lm, FULL, rows, training={"maxSteps": 6} | training | {"epochs": None})


CASES: dict[str, Callable[[Path, Path, Path], Run]] = {
    "full": functools.partial(classifying, FULL),
    "penalty": functools.partial(classifying, PENALISED),
    "bottleneck": functools.partial(classifying, HOULSBY),
    "lora": functools.partial(classifying, LORA),
    "response": answering,
    "feature": imitating,
    "generation": writing,
}


# Three, of which one may have no row, where rows are dealt by each of the ways there are.
SIZES = dict.fromkeys(("full", "response", "generation"), (2, 3))


@pytest.mark.parametrize("name", CASES)
def test_the_curve_does_not_depend_on_the_number_of_processes(
    still_bert: Path, teacher: Path, tmp_path: Path, name: str
) -> None:
    alone = on_nodes(CASES[name](tmp_path / "1", still_bert, teacher), 1)
    assert run_trainer(alone, ranks.every_step) == ExitCode.COMPLETE
    expected = curve(alone)
    assert len([point for point in expected if "norm" in point]) >= 6
    for size in SIZES.get(name, (2,)):
        run = on_nodes(CASES[name](tmp_path / str(size), still_bert, teacher), size)
        assert run_ranks(run) == [ExitCode.COMPLETE] * size
        found = curve(run)
        assert len(found) == len(expected)
        for point, wanted in zip(found, expected, strict=True):
            assert point == pytest.approx(wanted, abs=PRECISE, rel=PRECISE)


def test_more_processes_than_rows_in_a_batch(still_bert: Path, tmp_path: Path) -> None:
    training = {"batchSize": 2, "learningRate": "2e-3", "maxSteps": 4}
    alone = on_nodes(make_run(tmp_path / "1", still_bert, FULL, num_train=9, training=training), 1)
    assert run_trainer(alone, ranks.every_step) == ExitCode.COMPLETE
    run = on_nodes(make_run(tmp_path / "3", still_bert, FULL, num_train=9, training=training), 3)
    assert run_ranks(run) == [ExitCode.COMPLETE] * 3
    for point, wanted in zip(curve(run), curve(alone), strict=True):
        assert point == pytest.approx(wanted, abs=PRECISE)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_rows_are_dealt_whole_and_evenly(size: int) -> None:
    lengths = [3, 50, 7, 7, 31, 2, 18, 9, 44, 12, 5, 27, 8, 16, 40, 6, 11, 23, 35, 4]
    rows = [*range(19, -1, -1)]
    shares = [deal(_Rank(rank, size), rows, lengths) for rank in range(size)]
    assert sorted(row for share in shares for row in share) == [*range(20)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [sum(lengths[row] for row in share) for share in shares]
    assert max(tokens) <= 1.35 * sum(tokens) / size
    assert [len(deal(_Rank(rank, size), [4], lengths)) for rank in range(size)] == [1] + [0] * (size - 1)


def test_one_process_takes_the_rows_as_they_are() -> None:
    assert deal(OneProcess(), [3, 1, 2], [9, 1, 5, 7]) == [3, 1, 2]


class _Rank(OneProcess):
    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def with_dropout(directory: Path, model: Path, size: int = 2) -> Run:
    """Dropout, a smaller last batch, early stopping that decides; saved out of step with the evaluations."""
    run = make_run(
        directory,
        model,
        FULL,
        num_train=28,
        training={"epochs": 4, "batchSize": 8, "microBatchSize": 2, "learningRate": "5e-3"},
        evaluation={"everySteps": 3, "batchSize": 4, "metric": "loss", "earlyStopping": {"patience": 2}},
        checkpoint={"everySteps": 4, "keep": 2},
    )
    return on_nodes(run, size)


@pytest.fixture(scope="module")
def undisturbed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How a run of two processes ends."""
    run = with_dropout(tmp_path_factory.mktemp("undisturbed"), tiny_bert)
    assert run_ranks(run) == [ExitCode.COMPLETE] * 2
    return end_state(run)


def promptly(run: Run, *faults: Any) -> list[int]:
    start = time.monotonic()
    codes = run_ranks(run, *faults)
    assert time.monotonic() - start < PROMPT_SECONDS
    return codes


def assert_same_end(run: Run, undisturbed: dict[str, Any]) -> None:
    end = end_state(run)
    assert not [key for key, value in undisturbed.items() if end[key] != value]
    assert not leftovers(Path(run.work_dir).parent)


def test_every_process_draws_its_own_dropout(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "random.safetensors").write_bytes(undisturbed["random.safetensors"])
    states = load_file(tmp_path / "random.safetensors")
    assert states.keys() == {"cpu", "cpu/1"}
    assert not torch.equal(states["cpu"], states["cpu/1"])


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("step", [2, 7])
def test_a_killed_process_ends_the_others_and_the_rerun_has_the_same_bits(
    tiny_bert: Path, tmp_path: Path, undisturbed: dict[str, Any], lost: int, step: int
) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    faults: list[list[Any]] = [[], []]
    faults[lost] = [functools.partial(processes.signal_before, STEP, step, signal.SIGKILL)]
    codes = promptly(run, *faults)
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == ExitCode.PEER_LOST
    assert last_word(run, 1 - lost).reason == "PeerLost"
    assert run_ranks(run) == [ExitCode.COMPLETE] * 2
    assert_same_end(run, undisturbed)


def was_evaluated(run: Run, step: int) -> bool:
    return any(event["event"] == "evaluation" and event["step"] == step for event in events(run))


def test_a_process_killed_while_the_first_evaluates_is_noticed(tiny_bert: Path, tmp_path: Path) -> None:
    """The first does not go on to the end of a long evaluation."""
    run = with_dropout(tmp_path, tiny_bert)
    killed = functools.partial(ranks.signal_while_waiting, EVALUATION, signal.SIGKILL)
    assert promptly(run, [LONG_EVALUATION], [killed]) == [ExitCode.PEER_LOST, -signal.SIGKILL]
    assert not was_evaluated(run, 3)


@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.parametrize("step", [1, 6])
def test_a_stop_of_one_process_stops_all_at_the_same_step(
    tiny_bert: Path, tmp_path: Path, undisturbed: dict[str, Any], stopped: int, step: int
) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    faults: list[list[Any]] = [[], []]
    faults[stopped] = [functools.partial(processes.signal_before, STEP, step)]
    assert run_ranks(run, *faults) == [ExitCode.STOPPED] * 2
    assert checkpoints(run)[0].name == f"step-{step:08d}"
    for rank in (0, 1):
        assert f"stopped at step {step};" in last_word(run, rank).message
    assert not output(run).exists()
    assert run_ranks(run) == [ExitCode.COMPLETE] * 2
    assert_same_end(run, undisturbed)


def test_a_stop_of_another_process_interrupts_the_evaluation_of_the_first(
    tiny_bert: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    stopped = functools.partial(ranks.signal_while_waiting, EVALUATION, signal.SIGTERM)
    assert promptly(run, [LONG_EVALUATION], [stopped]) == [ExitCode.STOPPED] * 2
    assert not was_evaluated(run, 3)
    assert checkpoints(run)[0].name == "step-00000003"
    assert run_ranks(run) == [ExitCode.COMPLETE] * 2
    assert_same_end(run, undisturbed)


def test_a_process_that_hangs_is_not_waited_for_without_end(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    hang = functools.partial(processes.signal_before, STEP, 3, signal.SIGSTOP)
    patience = functools.partial(ranks.wait_at_most, 6.0)
    waiting, hanging = ranks.start_each([run, run], [patience], [patience, hang])
    try:
        assert exit_code(waiting) == ExitCode.PEER_LOST
        assert hanging.is_alive()
    finally:
        hanging.kill()
        hanging.join()


def test_a_process_that_does_not_come_is_not_waited_for_without_end(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert, size=3)
    patience = [functools.partial(ranks.wait_at_most, 4.0)]
    codes = ranks.run_each([run, run], patience, patience)
    assert codes == [ExitCode.NETWORK_UNAVAILABLE, ExitCode.PEER_LOST], "one of them counts as a try"
    assert "of 3 processes, 2 did not come" in last_word(run, 0).message
    assert not Path(run.work_dir, "checkpoints").exists()


def test_processes_that_meet_but_do_not_reach_each_other_count_as_one_try(tiny_bert: Path, tmp_path: Path) -> None:
    """Counted by none, their pods would be remade for ever."""
    if not ranks.has_landlock():
        pytest.skip("ports are kept from a process by Landlock, which this kernel has not")
    run = with_dropout(tmp_path, tiny_bert)
    walled = [functools.partial(ranks.wait_at_most, 5.0), ranks.connect_only_to_the_meeting_place]
    assert run_ranks(run, walled, walled) == [ExitCode.NETWORK_UNAVAILABLE, ExitCode.PEER_LOST]
    word = last_word(run, 0)
    assert "the processes do not reach each other" in word.message
    assert "NetworkPolicies" in word.hint
    assert not Path(run.work_dir, "checkpoints").exists()


def test_a_first_process_that_neither_trains_nor_ends_is_counted_by_the_others(tiny_bert: Path, tmp_path: Path) -> None:
    """When not even its watchdog ends it, nobody else can; the pods of the others would be remade for ever."""
    run = with_dropout(tmp_path, tiny_bert)
    port = ranks.free_port()
    first = ranks.start(run, 0, port, [functools.partial(processes.hang_before, STEP, 3)])
    try:
        killed = functools.partial(processes.signal_before, STEP, 3, signal.SIGKILL)
        assert exit_code(ranks.start(run, 1, port, [killed])) == -signal.SIGKILL
        patience = [functools.partial(ranks.wait_at_most, 2.0), functools.partial(processes.hang_at_most, 2.0)]
        assert exit_code(ranks.start(run, 1, port, patience)) == ExitCode.HANG
        assert "neither ends nor begins anew" in last_word(run, 1).message
        assert first.is_alive()
    finally:
        first.kill()
        first.join()


AT_THE_MEETING, IN_A_STEP = 1, 3
"""Which sum over the processes that is."""


@pytest.mark.parametrize(
    ("call", "message", "code"),
    [
        (AT_THE_MEETING, "CUDA error: uncorrectable ECC error encountered", ExitCode.INTERNAL_ERROR),
        (IN_A_STEP, "CUDA error: device-side assert triggered", ExitCode.INTERNAL_ERROR),
        (IN_A_STEP, "CUDA error: out of memory", ExitCode.OUT_OF_MEMORY),
    ],
)
def test_a_gpu_that_fails_is_no_lost_peer_in_its_own_process(
    tiny_bert: Path, tmp_path: Path, call: int, message: str, code: ExitCode
) -> None:
    """Counted by none, the job would begin anew for ever."""
    run = with_dropout(tmp_path, tiny_bert)
    codes = promptly(run, [], [functools.partial(ranks.gpu_fails, call, f"{message}\nFor debugging, consider ...")])
    assert codes == [ExitCode.NETWORK_UNAVAILABLE if call == AT_THE_MEETING else ExitCode.PEER_LOST, code]
    assert message in last_word(run, 1).message


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled {} error, NCCL version 2.30.7\n"
TRACE = "\nException raised from create at NCCLUtils.cpp:94 (most recent call first):\n#0 c10::Error::Error"


def test_what_nccl_says_of_its_own_gpu_is_no_lost_peer() -> None:
    said = f"{NCCL.format('cuda')}ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
    error = torch.distributed.DistBackendError(f"{said}Cuda failure 2 'out of memory'{TRACE}")
    with pytest.raises(torch.distributed.DistBackendError), peer_errors():
        raise error
    assert is_out_of_memory(error)
    assert words_of(error) == "Cuda failure 2 'out of memory'"


def test_a_lost_peer_is_told_with_its_cause() -> None:
    cause = "Error while creating shared memory segment /dev/shm/nccl-a8Xk2 (size 9637888)"
    with pytest.raises(TrainerError) as lost, peer_errors():
        raise torch.distributed.DistBackendError(f"{NCCL.format('system')}Last error:\n{cause}{TRACE}")
    assert lost.value.code == ExitCode.PEER_LOST
    assert lost.value.message.endswith(f"Last error: {cause}")


def test_processes_that_end_well_part(tiny_bert: Path, tmp_path: Path) -> None:
    """PyTorch asks for it: NCCL may hang at the end of a process that others still talk to."""
    run = with_dropout(tmp_path, tiny_bert)
    files = [tmp_path / "first", tmp_path / "second"]
    faults = [[functools.partial(ranks.tell_at_the_end_whether_joined, file)] for file in files]
    assert run_ranks(run, *faults) == [ExitCode.COMPLETE] * 2
    assert [file.read_text() for file in files] == ["False"] * 2


def test_a_stop_while_waiting_for_the_others(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    stop = functools.partial(processes.signal_before, "finetune_trainer.rendezvous:_is_over", 2)
    assert ranks.run_each([run], [stop]) == [ExitCode.STOPPED]


def test_broken_data_ends_all_with_their_own_reason(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    write_rows(Path(run.manifest_dir, "train.jsonl"), [{"words": "no text here"}] * 9)
    assert promptly(run) == [ExitCode.DATA_INVALID] * 2
    assert last_word(run, 1).reason == "DataInvalid"


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    # 4 parts of a batch are 2 in each process, so its fifth is in the third step.
    broken = functools.partial(ranks.not_a_number, LOSS, 5)
    assert run_ranks(run, [], [broken]) == [ExitCode.NON_FINITE_LOSS] * 2
    for rank in (0, 1):
        assert "the loss is nan at step 3" in last_word(run, rank).message


def test_an_evaluation_that_is_not_finite_ends_all(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    broken = functools.partial(ranks.not_a_number, "finetune_trainer.evaluation:losses.cross_entropy", 1)
    assert run_ranks(run, [broken]) == [ExitCode.MODEL_INVALID] * 2  # before the first step: the given weights


def test_what_only_the_first_process_meets_is_counted_once(tiny_bert: Path, tmp_path: Path) -> None:
    """A full disk may be tried again, so the others must not count against the limit of tries too."""
    run = with_dropout(tmp_path, tiny_bert)
    full = functools.partial(ranks.fail, SAVE, 1, ExitCode.STORAGE_FULL)
    assert promptly(run, [full]) == [ExitCode.STORAGE_FULL, ExitCode.PEER_LOST]
    assert "it was made to fail" in last_word(run, 1).message


def test_an_export_that_fails_ends_all(tiny_bert: Path, tmp_path: Path) -> None:
    """Nobody is done before the model is there: a node that had ended well would not come again."""
    run = with_dropout(tmp_path, tiny_bert)
    failing = functools.partial(ranks.fail, "finetune_trainer.run:export", 1, ExitCode.STORAGE_FULL)
    assert run_ranks(run, [failing]) == [ExitCode.STORAGE_FULL, ExitCode.PEER_LOST]
    assert run_ranks(run) == [ExitCode.COMPLETE] * 2


def test_the_first_process_comes_again_when_the_others_are_done(tiny_bert: Path, tmp_path: Path) -> None:
    """Killed between its export and its last word, it would wait for ever: who has ended well is not started again."""
    run = with_dropout(tmp_path, tiny_bert)
    killed = functools.partial(
        processes.signal_before, "finetune_trainer.__main__:write_termination", 1, signal.SIGKILL
    )
    assert run_ranks(run, [killed]) == [-signal.SIGKILL, ExitCode.COMPLETE]
    [first] = ranks.start_each([run])
    assert exit_code(first) == ExitCode.COMPLETE
    word = last_word(run, 0)
    assert word.result is not None
    assert word.progress is not None
    assert word.progress.step == word.result.steps
    assert word.result.after == [event["metrics"] for event in events(run) if event["event"] == "evaluation"][-1]


def test_the_first_process_alone_writes_and_tells(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    writes = [functools.partial(ranks.fail, place, 1, ExitCode.INTERNAL_ERROR) for place in ranks.WRITES]
    assert run_ranks(run, [], writes) == [ExitCode.COMPLETE] * 2
    assert len([note for note in notes(run) if "in each of 2 processes" in note]) == 1
    assert last_word(run, 0).result is not None
    assert last_word(run, 1).result is None


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    tiny_bert: Path, tmp_path: Path, before: int, after: int
) -> None:
    run = with_dropout(tmp_path, tiny_bert, size=before)
    stop = functools.partial(processes.signal_before, STEP, 5)
    assert run_ranks(run, [stop]) == [ExitCode.STOPPED] * before
    again = on_nodes(run, after)
    assert run_ranks(again) == [ExitCode.COMPLETE] * after
    assert any("resumed from the checkpoint at step 5" in note for note in notes(again))
    assert any("another number of processes" in note for note in notes(again))


def test_a_volume_that_is_not_shared_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    other = run.model_copy(update={"work_dir": str(tmp_path / "elsewhere")})
    look = [functools.partial(ranks.look_at_most, 1.0)]
    assert ranks.run_each([run, other], look, look) == [ExitCode.SPEC_INVALID] * 2
    assert "ReadWriteMany" in last_word(run, 0).hint


def test_different_data_on_the_nodes_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path / "a", tiny_bert)
    other = with_dropout(tmp_path / "b", tiny_bert)
    write_rows(tmp_path / "b" / "train.jsonl", [{"text": f"a film {n}", "label": "good"} for n in range(28)])
    other = run.model_copy(update={"manifest_dir": other.manifest_dir})
    assert ranks.run_each([run, other]) == [ExitCode.DATA_INVALID] * 2


@pytest.mark.usefixtures("unchecked_export")
def test_a_job_of_several_nodes_needs_a_cluster(tiny_bert: Path, tmp_path: Path) -> None:
    run = with_dropout(tmp_path, tiny_bert)
    assert run_trainer(run) == ExitCode.SPEC_INVALID
    word = Path(run.work_dir, "termination.json").read_text()
    assert "spec.resources.nodes is 2: a job of several nodes needs a cluster" in word


def test_relations_between_samples_are_refused(teacher: Path, tmp_path: Path) -> None:
    run = on_nodes(make_run(tmp_path, teacher, distilling(teacher, relation={})), 2)
    assert run_ranks(run) == [ExitCode.SPEC_INVALID] * 2
    assert "spec.resources: relations between samples" in last_word(run, 1).message
