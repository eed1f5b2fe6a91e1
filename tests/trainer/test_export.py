"""What is exported is what was trained, to whoever has only transformers and peft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import ModelSource
from finetune_api.v1alpha1.strategy import Strategy
from finetune_trainer import storage
from finetune_trainer.adapters.modeling_adapters import AdaptedForSequenceClassification
from finetune_trainer.export import reload
from finetune_trainer.export.card import model_card
from trainer.runs import complete, finish, leftovers, make_loop, output
from trainer.tiny import FULL, HOULSBY, KINDS, LORA, PFEIFFER, STRATEGIES, make_model, make_run, write_rows

TEXTS = ["the film was fresh", "a dull story", "music in the city house and a long road to it is weak"]

# A user's own script: it knows the model card's lines, and has nothing of ours to import.
USER = """
import json, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("finetune_"):
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
directory, texts, answer = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
{card}
import torch
from safetensors.torch import save_file
inputs = tokenizer(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**inputs).logits
save_file({{"logits": logits.float().contiguous()}}, answer)
labels = [model.config.id2label[number] for number in range(logits.shape[-1])]
print(json.dumps({{"labels": labels, "class": type(model).__name__}}))
"""


def loaded_by_a_user(directory: Path, scratch: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits of TEXTS and what else a fresh process says, which runs the model card's own Python."""
    card = (directory / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    script, answer = scratch / "user.py", scratch / "logits.safetensors"
    script.write_text(USER.format(card=code), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(directory), json.dumps(TEXTS), str(answer)],
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch,
        env=os.environ | {"HF_MODULES_CACHE": str(scratch / "modules")},
    )
    assert done.returncode == 0, done.stderr
    return load_file(answer)["logits"], json.loads(done.stdout.splitlines()[-1])


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
    logits, said = loaded_by_a_user(output(run), tmp_path)
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
        card = model_card(run.model_copy(update={"spec": named_so}), result, loop.task, loop.tuning, 0.0)
        header = yaml.safe_load(card.split("---\n")[1])
        assert header.get("base_model") == named
        if named is not None:
            validate_repo_id(header["base_model"])
        assert said in card


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
