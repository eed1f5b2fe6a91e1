"""What is exported is what was trained, to whoever has only transformers and peft."""

from __future__ import annotations

import gc
import itertools
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from contract_cases import VALID_SPECS, valid_job
from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import load_jobs
from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_api.v1alpha1.sources import ModelSource
from finetune_api.v1alpha1.strategy import Strategy
from finetune_cli.kubectl.result import how_to_load
from finetune_trainer import optim, storage
from finetune_trainer.adapters.modeling_adapters import AdaptedForSequenceClassification
from finetune_trainer.export import reload
from finetune_trainer.export.card import model_card
from trainer.adapted import TEXTS
from trainer.conftest import ROOT
from trainer.loading_lines import lines_of, loaded_by_a_user
from trainer.runs import complete, finish, leftovers, make_loop, output
from trainer.tiny import FULL, HOULSBY, KINDS, LORA, PFEIFFER, STRATEGIES, make_model, make_run, write_rows


def logits_in_memory(run: Run) -> torch.Tensor:
    """The logits of the last checkpoint's weights in a model that never saw the export."""
    loop = make_loop(run)
    loop.run()  # resumes at the end: it trains nothing
    tokenizer = AutoTokenizer.from_pretrained(Path(run.spec.model.uri.removeprefix("file://")))
    with torch.no_grad():
        logits: torch.Tensor = loop.model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_user_gets_the_logits_that_were_trained(tiny_bert: Path, tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, tiny_bert, STRATEGIES[name], num_labels=3)
    result = complete(run).result
    assert result is not None
    logits, said = loaded_by_a_user(lines_of(run), tmp_path)
    torch.testing.assert_close(logits, logits_in_memory(run), rtol=0, atol=1e-6)
    assert said["labels"] == ["bad", "good", "odd"]
    assert result.digest == storage.digest(output(run))
    assert not [path for path in output(run).rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert not leftovers(output(run).parent)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mpnet"}))
def test_adapters_come_back_in_every_architecture(tmp_path: Path, kind: str) -> None:
    """The export's own comparison in a fresh process judges; that it sees a difference is shown below."""
    complete(make_run(tmp_path, make_model(tmp_path / "base", kind), PFEIFFER, training={"maxSteps": 3}))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["deberta-v2", "gpt2", "llama"])
def test_heads_that_were_not_in_the_checkpoint_come_back(tmp_path: Path, kind: str, strategy: dict[str, Any]) -> None:
    """DeBERTa's pooler, which peft leaves out, and the heads of decoders."""
    complete(make_run(tmp_path, make_model(tmp_path / "base", kind), strategy, training={"maxSteps": 3}))


@pytest.mark.usefixtures("unchecked_export")
class TestCard:
    @pytest.fixture
    def card(self, tiny_bert: Path, tmp_path: Path) -> str:
        run = make_run(tmp_path, tiny_bert, HOULSBY, training={"maxSteps": 2})
        rows = (tmp_path / "train.jsonl").read_text()
        (tmp_path / "train.jsonl").write_text(rows + '{"text": "", "label": "good"}\n')
        complete(run)
        return (output(run) / "README.md").read_text(encoding="utf-8")

    def test_says_figures_data_and_the_job(self, card: str, tiny_bert: Path) -> None:
        header = yaml.safe_load(card.split("---\n")[1])
        assert f"The base model is `file://{tiny_bert}`." in card
        assert header["pipeline_tag"] == "text-classification"
        assert "| accuracy | 0." in card
        assert "1 dropped" in card or "dropped 1" in card, card
        spec = yaml.safe_load(card.rpartition("```yaml\n")[2].partition("```")[0])
        assert Strategy.model_validate(spec["strategy"]) == Strategy.model_validate(HOULSBY)

    @pytest.mark.parametrize(
        ("source", "named", "said"),
        [
            ({"uri": "hf://owner/name"}, "owner/name", "The base model is `hf://owner/name`.\n"),
            (
                {"uri": "hf://owner/name", "revision": "refs/pr/1"},
                "owner/name",
                "The base model is `hf://owner/name`, revision `refs/pr/1`.\n",
            ),
            ({"uri": "pvc://models/bert"}, None, "The base model is `pvc://models/bert`.\n"),
            ({"uri": "s3://bucket/bert"}, None, "The base model is `s3://bucket/bert`.\n"),
            ({"uri": "file:///models/bert"}, None, "The base model is `file:///models/bert`.\n"),
        ],
    )
    def test_the_hub_would_take_its_header(
        self, tiny_bert: Path, tmp_path: Path, source: dict[str, str], named: str | None, said: str
    ) -> None:
        """Its check of a card's header wants the name of a repository as the base model, by its own library's rules."""
        run = make_run(tmp_path, tiny_bert, LORA, training={"maxSteps": 2})
        result = complete(run).result
        assert result is not None
        loop = make_loop(run)
        named_so = run.spec.model_copy(update={"model": ModelSource.model_validate(source)})
        card = model_card(run.model_copy(update={"spec": named_so}), result, loop.task, 0.0)
        header = yaml.safe_load(card.split("---\n")[1])
        assert header.get("base_model") == named
        if named is not None:
            validate_repo_id(header["base_model"])
        assert said in card

    def test_the_kubectl_plugin_says_its_lines_of_every_job(self, tiny_bert: Path, tmp_path: Path) -> None:
        """Of one that is stored with its defaults as of one without them, for every task."""
        run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2})
        result, task = complete(run).result, make_loop(run).task
        assert result is not None
        samples = [job for path in sorted((ROOT / "manifests/samples").glob("*.yaml")) for job in load_jobs(path)]
        specs = [job.spec.to_json() for job in samples]
        for name, other in itertools.product(VALID_SPECS, TaskName):
            stored: dict[str, Any] = valid_job(name)["spec"]
            specs.append({key: stored[key] for key in ("model", "output", "strategy")} | {"task": other.value})
        compared = 0
        for stored in specs:
            parts = {"task": TaskName(stored["task"]), "strategy": Strategy.model_validate(stored["strategy"])}
            spec = run.spec.model_copy(update=parts | {"model": ModelSource.model_validate(stored["model"])})
            if spec.strategy.auto is not None:
                continue  # the trainer has put its choice in the place of it by then
            card = model_card(run.model_copy(update={"spec": spec}), result, task, 0.0)
            lines = card.partition("```python\n")[2].partition("```")[0]
            assert f"\n{lines}\nIts README.md" in how_to_load(stored, stored["output"]["uri"]), stored
            compared += 1
        assert compared > 60


def test_a_model_that_comes_back_differently_is_no_success(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are changed after they were written, as a wrong `save` would."""
    save = AdaptedForSequenceClassification.save_pretrained

    def save_wrongly(self: AdaptedForSequenceClassification, directory: Path, **arguments: Any) -> None:
        save(self, directory, **arguments)
        weights = load_file(directory / "model.safetensors")
        name = next(name for name in weights if name.endswith("classifier.weight"))
        save_file(weights | {name: weights[name] + 1e-3}, directory / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(AdaptedForSequenceClassification, "save_pretrained", save_wrongly)
    run = make_run(tmp_path, tiny_bert, HOULSBY, training={"maxSteps": 2})
    termination = finish(run)
    assert termination.exit_code == ExitCode.EXPORT_MISMATCH
    assert "other logits" in termination.message
    assert not output(run).exists()
    assert not leftovers(output(run).parent)


def test_a_model_that_does_not_load_is_no_success(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = AdaptedForSequenceClassification.save_pretrained

    def save_without_code(self: AdaptedForSequenceClassification, directory: Path, **arguments: Any) -> None:
        save(self, directory, **arguments)
        (directory / "modeling_adapters.py").unlink()

    monkeypatch.setattr(AdaptedForSequenceClassification, "save_pretrained", save_without_code)
    run = make_run(tmp_path, tiny_bert, HOULSBY, training={"maxSteps": 2})
    termination = finish(run)
    assert termination.exit_code == ExitCode.EXPORT_MISMATCH
    assert "cannot be loaded" in termination.message
    assert not output(run).exists()


SEES_A_GPU = """
import os, sys

if "-P" in sys.orig_argv and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
    import torch

    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda._lazy_init = fill
    torch._C._cuda_init = fill
"""


RUNS_OUT_OF_MEMORY = """
import os, sys

class Full:
    def find_spec(self, name, *_):
        if name == "transformers":
            {}

if "-P" in sys.orig_argv:
    sys.meta_path.insert(0, Full())
"""


def says_at_start(code: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that reloads an export be a fresh one, which runs this code first."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    monkeypatch.setattr(reload, "subprocess", subprocess)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"quantization": "NF4"}], ids=["32 bits", "4 bits"])
def test_the_export_is_reloaded_without_the_gpu_that_the_trainer_has_filled(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """The GPU is played: the process sees a full one, unless it is told to see none."""
    says_at_start(SEES_A_GPU, tmp_path / "site", monkeypatch)
    strategy = {"adapter": {"type": "LoRA", "rank": 2, **fields}}
    complete(make_run(tmp_path, tiny_bert, strategy, training={"maxSteps": 2}))


@pytest.mark.parametrize(
    "code",
    [
        "raise MemoryError",
        'raise RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory")',
        "os.kill(os.getpid(), 9)",
    ],
    ids=["python", "torch", "kernel"],
)
def test_memory_that_is_not_enough_to_reload_the_export_is_no_defect(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    says_at_start(RUNS_OUT_OF_MEMORY.format(code), tmp_path / "site", monkeypatch)
    termination = finish(make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2}))
    assert (termination.exit_code, termination.reason) == (ExitCode.OUT_OF_MEMORY, "OutOfMemory")
    assert "reloads the exported model" in termination.message
    assert "spec.resources.memory" in termination.hint


def test_what_trained_is_let_go_of_before_the_export(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer's moments are twice the model, and another copy of it is about to be loaded."""
    made, alive = [], []
    make = optim.make_optimizer

    def remember(*args: Any) -> torch.optim.Optimizer:
        optimizer = make(*args)
        made.append(weakref.ref(optimizer))
        return optimizer

    def compare(*_: Any) -> float:
        alive.extend(one() for one in made)
        return 0.0

    monkeypatch.setattr(optim, "make_optimizer", remember)
    monkeypatch.setattr(reload, "compare", compare)
    gc.disable()
    try:
        complete(make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2}))
    finally:
        gc.enable()
    assert alive == [None]


@pytest.mark.usefixtures("unchecked_export")
class TestTarget:
    def test_files_of_others_are_not_replaced(self, tiny_bert: Path, tmp_path: Path) -> None:
        run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2})
        output(run).mkdir()
        (output(run) / "thesis.txt").write_text("years of work")
        termination = finish(run)
        assert termination.exit_code == ExitCode.OUTPUT_REFUSED
        assert "thesis.txt" in termination.message
        assert (output(run) / "thesis.txt").read_text() == "years of work"
        assert not Path(run.work_dir).exists()  # refused before a step is trained

    def test_a_file_is_not_replaced(self, tiny_bert: Path, tmp_path: Path) -> None:
        run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2})
        output(run).write_text("a file")
        assert finish(run).exit_code == ExitCode.OUTPUT_REFUSED
        assert output(run).read_text() == "a file"

    def test_an_earlier_output_is_replaced(self, tiny_bert: Path, tmp_path: Path) -> None:
        run = make_run(tmp_path, tiny_bert, LORA, training={"maxSteps": 2})
        complete(run)
        assert (output(run) / "adapter_config.json").exists()
        other = make_run(
            tmp_path, tiny_bert, FULL, training={"maxSteps": 2}, uid="22222222-2222-2222-2222-222222222222"
        )
        complete(other)
        assert not (output(other) / "adapter_config.json").exists()
        storage.check_directory(output(other))

    def test_a_place_where_no_directory_can_be_is_told_before_training(self, tiny_bert: Path, tmp_path: Path) -> None:
        run = make_run(tmp_path, tiny_bert, FULL, output={"uri": "file:///proc/finetune/out"})
        termination = finish(run)
        assert termination.exit_code == ExitCode.OUTPUT_REFUSED
        assert "/proc/finetune/out" in termination.message
        assert not Path(run.work_dir).exists()

    @pytest.mark.parametrize("name", ["out", "new/out"])
    def test_a_volume_that_is_mounted_read_only_is_told_as_that(
        self, tiny_bert: Path, tmp_path: Path, small_disk: Callable[[int], Path], name: str
    ) -> None:
        disk = small_disk(64)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        termination = finish(make_run(tmp_path, tiny_bert, FULL, output={"uri": f"file://{disk / name}"}))
        assert termination.exit_code == ExitCode.OUTPUT_REFUSED
        assert termination.message == f"output {disk / name} cannot be made: Read-only file system"
        assert termination.hint == "mount its volume for writing"


def test_pairs_are_compared_as_pairs(tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        tiny_bert,
        HOULSBY,
        training={"maxSteps": 2},
        data={"train": {"uri": "file://pairs.jsonl"}, "splitFraction": "0.2", "columns": {"textPair": "hypothesis"}},
    )
    rows = [
        {"text": f"the film {number}", "hypothesis": f"a story {number}", "label": "ab"[number % 2]}
        for number in range(40)
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    complete(run)


def test_the_comparison_sees_a_difference(tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2})
    complete(run)
    tokenizer = AutoTokenizer.from_pretrained(output(run))
    inputs = {"text": TEXTS, "padding": True}
    tuned = make_loop(run)
    tuned.run()
    with torch.no_grad():
        expected = tuned.model.eval()(**tokenizer(**inputs, return_tensors="pt")).logits

    def compared(with_these: torch.Tensor) -> float:
        return reload.compare(output(run), "transformers", tuned.task.model_class, inputs, with_these)

    assert compared(expected) < 1e-6
    assert compared(expected + 0.5) == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(reload.NotLoaded, match=r"\[3, 2\] instead of \[3, 1\]"):
        compared(expected[:, :1])
