"""Training on a GPU, played by trainer.played_gpu: nothing is left on the CPU, and the export is of the CPU alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.run import Run
from finetune_trainer.prompts.encoder import PromptEncoder
from finetune_trainer.strategies import distillation, quantized
from finetune_trainer.watchdog import read_signs
from trainer.distilling import EVERYTHING, distilling
from trainer.played_gpu import is_on_gpu, played_gpu
from trainer.runs import complete, notes
from trainer.tiny import FULL, HOULSBY, make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

P_TUNING: dict[str, Any] = {"promptTuning": {"type": "PTuning", "numVirtualTokens": 4}}
PREFIX: dict[str, Any] = {"promptTuning": {"type": "Prefix", "numVirtualTokens": 4}}
MERGED: dict[str, Any] = {"adapter": {"type": "DoRA", "rank": 2, "merge": True}}
NF4: dict[str, Any] = {"adapter": {"type": "LoRA", "rank": 2, "quantization": "NF4"}}
PENALISED: dict[str, Any] = {"full": {"l2ToStart": "0.1", "layerDecay": "0.9", "gradualUnfreezing": {"everySteps": 1}}}
SHORT: dict[str, Any] = {"training": {"maxSteps": 2, "microBatchSize": 4}}
FEW: dict[str, Any] = {"num_train": 24, "num_evaluation": 12, **SHORT}


@pytest.fixture
def gpu() -> Iterator[None]:
    with played_gpu():
        yield


def classifying(strategy: dict[str, Any], directory: Path) -> Run:
    return make_run(directory, make_model(directory / "base"), strategy, **FEW)


def writing(strategy: dict[str, Any], directory: Path) -> Run:
    return make_lm_run(directory, make_lm(directory / "base"), strategy, make_chats(16), **SHORT)


def imitating(terms: dict[str, Any], directory: Path) -> Run:
    """The teacher is the base model, of four layers."""
    base = make_lm(directory / "base", num_hidden_layers=4)
    return make_lm_run(directory, base, distilling(base, **terms), make_chats(16), training={"maxSteps": 2})


CASES: dict[str, tuple[Callable[[dict[str, Any], Path], Run], dict[str, Any]]] = {
    "full": (classifying, PENALISED),
    "bottleneck": (classifying, HOULSBY),
    "merged": (classifying, MERGED),
    "4 bits": (classifying, NF4),
    "p-tuning": (classifying, P_TUNING),
    "prefix": (writing, PREFIX),
    "answers": (imitating, {"response": {"topK": 8}}),
    "states": (imitating, EVERYTHING),
}


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", CASES)
def test_all_that_a_step_computes_with_is_on_the_gpu_and_what_is_exported_on_the_cpu(tmp_path: Path, name: str) -> None:
    make, strategy = CASES[name]
    run = make(strategy, tmp_path)
    complete(run)
    assert any(note.startswith("training on cuda") for note in notes(run))


@pytest.mark.usefixtures("gpu", "unchecked_export")
def test_a_run_goes_on_there_from_its_checkpoint(tmp_path: Path) -> None:
    early = {"everySteps": 1, "earlyStopping": {"patience": 2}}
    run = make_run(tmp_path, make_model(tmp_path / "base"), FULL, **FEW, evaluation=early)
    complete(run)
    complete(run)
    assert any("resumed from the checkpoint at step 2" in note for note in notes(run))


@pytest.mark.usefixtures("gpu", "unchecked_export")
@pytest.mark.parametrize(
    ("name", "module", "work", "on_gpu"),
    [("4 bits", quantized, "quantize", False), ("answers", distillation, "answers_of", True)],
)
def test_the_watchdog_knows_what_is_prepared_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: Any, work: str, on_gpu: bool
) -> None:
    """Computing is a sign of life there: a large model is kept in 4 bits for longer than a hang may last."""
    seen, do = [], getattr(module, work)

    def look(*args: Any) -> Any:
        seen.append(read_signs().on_gpu)
        return do(*args)

    monkeypatch.setattr(module, work, look)
    make, strategy = CASES[name]
    complete(make(strategy, tmp_path))
    assert seen == [on_gpu]


@pytest.mark.usefixtures("gpu")
def test_what_the_played_gpu_refuses() -> None:
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there.long()]):
        with pytest.raises(RuntimeError, match="on the same device"):
            mixed()
    assert (there + there.sum().cpu()).is_cuda  # a number may be anywhere
    assert not is_on_gpu(there.cpu() + here)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """To seven bits in place of TensorFloat-32's ten: a tiny model shows less than a large one."""
    return tensor + (tensor.bfloat16().float() - tensor).detach()


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_the_prompt_of_p_tuning_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An LSTM of cuDNN rounds on GPUs since Ampere; the prompt that is saved is the one that is compared."""

    def forward(self: PromptEncoder) -> torch.Tensor:
        kept = rounded if is_on_gpu(self.embeddings) else lambda tensor: tensor
        weights = {name: kept(weight) for name, weight in self.lstm.named_parameters()}
        states, _ = torch.func.functional_call(self.lstm, weights, (kept(self.embeddings)[None],))
        return self.embeddings + self.mlp(states[0])

    monkeypatch.setattr(PromptEncoder, "forward", forward)
    strategy = {"promptTuning": {"type": "PTuning", "numVirtualTokens": 8}}
    training = {"maxSteps": 12, "learningRate": "2e-2"}
    complete(make_lm_run(tmp_path, make_lm(tmp_path / "base"), strategy, make_chats(32), training=training))
