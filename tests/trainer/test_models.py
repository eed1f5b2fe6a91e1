"""Loading models: what is refused and in which words, what is new, and that no code of a model ever runs."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BitsAndBytesConfig,
    T5Config,
    T5Model,
)

from finetune_api.exit_codes import ExitCode
from finetune_trainer.adapters.earlier import body_digest
from finetune_trainer.model_checks import check_directory
from finetune_trainer.models import Loaded, load_model, load_tokenizer, longest_input
from trainer.data_fixtures import failure
from trainer.runs import finish
from trainer.tiny import FULL, HOULSBY, KINDS, LORA, make_model, make_run
from trainer.tiny_lm import make_lm

DEEPSEEK: dict[str, Any] = (
    {"model_type": "deepseek_v3", "num_key_value_heads": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": None}
    | {"kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
)
LORA_NF4: dict[str, Any] = {"adapter": {"type": "LoRA", "rank": 2, "quantization": "NF4"}}


def load(directory: Path, num_labels: int = 3) -> Loaded:
    """All that a job does with a model directory before it trains."""
    check_directory(directory)
    tokenizer = load_tokenizer(directory)
    longest_input(directory, tokenizer)
    return load_model(AutoModelForSequenceClassification, directory, tokenizer, num_labels=num_labels)


def refused(directory: Path) -> str:
    """How loading fails; the directory is always named."""
    told = failure(ExitCode.MODEL_INVALID, load, directory)
    assert str(directory) in told
    return told


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in (content | changes).items() if value is not ...}))


def booby_trap(directory: Path) -> Path:
    """Python files that leave a mark when they are run."""
    mark = directory.parent / "mark"
    for name in ("modeling_own.py", "configuration_own.py", "tokenization_own.py"):
        (directory / name).write_text(f"open({str(mark)!r}, 'w')\n\n\nclass Own:\n    pass\n")
    return mark


OWN_CODE = {
    "AutoConfig": "configuration_own.Own",
    "AutoModel": "modeling_own.Own",
    "AutoModelForSequenceClassification": "modeling_own.Own",
}


class TestDirectory:
    def test_absent(self, tmp_path: Path) -> None:
        directory = tmp_path / "none"
        assert refused(directory) == (
            f"{directory}: no such model directory (check model.uri, and that the volume holds it)"
        )

    def test_a_file(self, model: Path) -> None:
        assert refused(model / "config.json") == (
            f"{model}/config.json: not a readable directory: Not a directory (check model.uri)"
        )

    def test_unreadable(self, model: Path) -> None:
        model.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert "not a readable directory: Permission denied" in failure(
                ExitCode.MODEL_INVALID, check_directory, model
            )
        finally:
            os.seteuid(user)

    def test_empty(self, tmp_path: Path) -> None:
        assert "no config.json (a model directory is what save_pretrained writes)" in refused(tmp_path)

    def test_an_adapter_of_peft(self, model: Path) -> None:
        (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
        assert "a peft adapter, not a whole model (name its base model" in refused(model)


class TestConfig:
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"a": ' * 100_000])
    def test_broken(self, model: Path, content: bytes) -> None:
        (model / "config.json").write_bytes(content)
        assert f"{model}/config.json: not valid JSON" in refused(model)

    @pytest.mark.parametrize("content", ["[]", '"auto_map"', "null", "{}", '{"model_type": 5}'])
    def test_without_model_type(self, model: Path, content: str) -> None:
        (model / "config.json").write_text(content)
        assert f"{model}/config.json: has no model_type" in refused(model)

    def test_unknown_model_type(self, model: Path) -> None:
        edit(model / "config.json", model_type="brt")
        assert refused(model) == (
            f"{model}/config.json: the model_type 'brt' is not known to transformers (did you mean bert?)"
        )

    @pytest.mark.parametrize("size", ["wide", 31, 0, -32])
    def test_a_value_that_makes_no_model(self, model: Path, size: Any) -> None:
        edit(model / "config.json", hidden_size=size)
        assert "config.json" in refused(model)

    @pytest.mark.parametrize("number", [10**6, None, -1])
    def test_the_padding_token_is_the_tokenizers(self, model: Path, number: int | None) -> None:
        edit(model / "config.json", pad_token_id=number)
        assert load(model).model.config.pad_token_id == 0

    def test_a_kind_of_model_that_has_no_such_head(self, model: Path) -> None:
        edit(model / "config.json", model_type="vit", image_size=32, patch_size=8)
        told = refused(model)
        assert "AutoModelForSequenceClassification" in told
        assert len(told) < 400


QUANTIZED: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


class TestQuantized:
    @pytest.mark.parametrize("way", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
    def test_by_bitsandbytes(self, tiny_bert: Path, tmp_path: Path, way: dict[str, Any]) -> None:
        model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
        BertModel.from_pretrained(tiny_bert, quantization_config=BitsAndBytesConfig(**way)).save_pretrained(model)
        assert refused(model) == (
            f"{model}/config.json: the weights are quantized already (quantization_config: bitsandbytes) "
            "(give the whole weights; where they do not fit, strategy.adapter.quantization: NF4 keeps them in 4 bits)"
        )

    @pytest.mark.parametrize("method", QUANTIZED)
    def test_in_another_way(self, model: Path, method: str) -> None:
        edit(model / "config.json", quantization_config=QUANTIZED[method])
        named = f"quantization_config{f': {method}' if method else ''}"
        assert f"{model}/config.json: the weights are quantized already ({named})" in refused(model)

    def test_not_at_all(self, model: Path) -> None:
        edit(model / "config.json", quantization_config=None)
        assert load(model).tokenizer.pad_token == "[PAD]"

    @pytest.mark.parametrize("strategy", [FULL, HOULSBY, LORA, LORA_NF4], ids=["full", "bottleneck", "lora", "nf4"])
    def test_no_strategy_trains_one(self, tiny_bert: Path, tmp_path: Path, strategy: dict[str, Any]) -> None:
        model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
        way = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        BertModel.from_pretrained(tiny_bert, quantization_config=way).save_pretrained(model)
        termination = finish(make_run(tmp_path / "run", model, strategy))
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "the weights are quantized already" in termination.message


class TestWeights:
    def test_none(self, model: Path) -> None:
        (model / "model.safetensors").unlink()
        assert refused(model) == (
            f"{model}: no weights (model.safetensors) (copy the model again; downloads may be incomplete)"
        )

    def test_of_another_name(self, model: Path) -> None:
        (model / "model.safetensors").rename(model / "consolidated.safetensors")
        assert "no weights (model.safetensors)" in refused(model)

    def test_pickles_only_are_never_read(self, model: Path) -> None:
        mark = model.parent / "mark"
        (model / "pytorch_model.bin").write_bytes(pickle_that_touches(mark))
        (model / "model.safetensors").unlink()
        assert refused(model) == (
            f"{model}: the weights are pickles only (pytorch_model.bin), which run code when read "
            "(convert them to safetensors: load and save_pretrained(...) on a machine where you trust them)"
        )
        assert not mark.exists()

    def test_beside_a_pickle_safetensors_are_read(self, model: Path) -> None:
        mark = model.parent / "mark"
        (model / "pytorch_model.bin").write_bytes(pickle_that_touches(mark))
        (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {}}))
        expected = load_file(model / "model.safetensors")
        state = load(model).model.state_dict()
        assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in expected.items())
        assert not mark.exists()

    @pytest.mark.parametrize("size", [0, 7, 100, 20_000])
    def test_truncated(self, model: Path, size: int) -> None:
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        assert f"{file}: not a whole safetensors file" in refused(model)

    def test_damaged_header(self, model: Path) -> None:
        file = model / "model.safetensors"
        file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
        assert f"{file}: not a whole safetensors file" in refused(model)

    def test_a_pointer_of_git_lfs(self, model: Path) -> None:
        file = model / "model.safetensors"
        file.write_text("version https://git-lfs.example/spec/v1\noid sha256:00\nsize 5\n")
        assert f"{file}: a Git LFS pointer, not the weights (fetch them with `git lfs pull`)" in refused(model)

    def test_that_fit_nothing(self, model: Path) -> None:
        save_file({"something.else": torch.zeros(3)}, model / "model.safetensors", metadata={"format": "pt"})
        assert f"{model}: none of the weights fit the architecture in config.json" in refused(model)

    def test_of_another_size(self, model: Path) -> None:
        edit(model / "config.json", hidden_size=64, intermediate_size=32)
        assert f"{model}: weights of another size than config.json says: bert.embeddings" in refused(model)

    def test_layers_without_weights(self, model: Path) -> None:
        edit(model / "config.json", num_hidden_layers=3)
        assert f"{model}: 16 weights that config.json speaks of are missing: bert.encoder.layer.2" in refused(model)

    @pytest.mark.parametrize("kind", ["bert", "distilbert", "llama", "gpt2", "deberta-v2"])
    def test_of_more_layers(self, tmp_path: Path, kind: str) -> None:
        """They would be left out without a word; output layers of other tasks are."""
        model = make_model(tmp_path / "model", kind)
        config = json.loads((model / "config.json").read_text())
        [name] = {"num_hidden_layers", "n_layer", "n_layers"} & config.keys()
        tensors = load_file(model / "model.safetensors")
        tensors |= {"cls.predictions.bias": torch.zeros(5), "cls.heads.0.weight": torch.zeros(5)}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        load(model)
        edit(model / "config.json", **{name: 1}, layer_types=...)
        told = refused(model)
        assert re.search(r"\d+ weights of layers that config.json does not speak of: [\w.]+\.1\.", told)
        assert "(mend the number of layers there; for a smaller model" in told

    def test_of_layers_that_predict_further_tokens(self, tmp_path: Path) -> None:
        """DeepSeek and its kin have them after the others; transformers knows their numbers for one depth only."""
        model = make_lm(tmp_path / "model", **DEEPSEEK, num_nextn_predict_layers=1)
        tensors = load_file(model / "model.safetensors")
        further = {name.replace(".1.", ".2.", 1): tensor.clone() for name, tensor in tensors.items() if ".1." in name}
        further["model.layers.2.eh_proj.weight"] = torch.zeros(32, 64)
        save_file(tensors | further, model / "model.safetensors", metadata={"format": "pt"})
        load_model(AutoModelForCausalLM, model, load_tokenizer(model))
        edit(model / "config.json", num_nextn_predict_layers=0)
        told = failure(ExitCode.MODEL_INVALID, load_model, AutoModelForCausalLM, model, load_tokenizer(model))
        assert "weights of layers that config.json does not speak of: model.layers.2." in told

    def test_a_spare_one_in_a_layer_that_is_there(self, tmp_path: Path) -> None:
        """T5 has such a table in its first block; some checkpoints have one in each."""
        model = make_model(tmp_path / "model")
        size = len(load_tokenizer(model))
        config = T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        T5Model(config).save_pretrained(model)
        tensors = load_file(model / "model.safetensors")
        table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tensors[table.replace("block.0", "block.1")] = tensors[table].clone()
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        load(model)

    def test_one_tensor_missing(self, model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        del tensors["embeddings.LayerNorm.bias"]
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        assert "1 weights that config.json speaks of are missing: bert.embeddings.LayerNorm.bias" in refused(model)


class TestShards:
    @pytest.fixture
    def sharded(self, model: Path) -> Path:
        whole = BertModel.from_pretrained(model)
        (model / "model.safetensors").unlink()
        whole.save_pretrained(model, max_shard_size="50KB")
        assert len(list(model.glob("model-*.safetensors"))) > 1
        return model

    def test_whole(self, sharded: Path, tiny_bert: Path) -> None:
        state = load(sharded).model.state_dict()
        expected = load_file(tiny_bert / "model.safetensors")
        assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in expected.items())

    def test_one_missing(self, sharded: Path) -> None:
        shards = sorted(sharded.glob("model-*.safetensors"))
        shards[0].unlink()
        assert f"1 of {len(shards)} files of weights are missing: {shards[0].name}" in refused(sharded)

    def test_one_truncated(self, sharded: Path) -> None:
        shard = sorted(sharded.glob("model-*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:-10])
        assert f"{shard}: not a whole safetensors file" in refused(sharded)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": [1]}}'])
    def test_index_that_is_none(self, sharded: Path, content: str) -> None:
        (sharded / "model.safetensors.index.json").write_text(content)
        assert "not a valid index of weights" in refused(sharded)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "../other/model.safetensors", "/tmp/a.safetensors", 5])  # noqa: S108
    def test_index_that_names_pickles_or_files_elsewhere(self, sharded: Path, name: Any) -> None:
        mark = sharded.parent / "mark"
        (sharded / "pytorch_model.bin").write_bytes(pickle_that_touches(mark))
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        assert f"names {name!r}, not safetensors beside it" in refused(sharded)
        assert not mark.exists()


class TestOwnCode:
    def test_of_an_unknown_architecture_is_refused(self, model: Path) -> None:
        mark = booby_trap(model)
        edit(model / "config.json", model_type="own", auto_map=OWN_CODE)
        assert refused(model) == (
            f"{model}: the model needs code of its own, which is never run "
            "(use a model whose architecture transformers has)"
        )
        assert not mark.exists()

    def test_of_a_known_architecture_is_passed_over(self, model: Path) -> None:
        mark = booby_trap(model)
        edit(model / "config.json", auto_map=OWN_CODE)
        edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
        assert isinstance(load(model).model, BertForSequenceClassification)
        assert not mark.exists()

    def test_of_a_tokenizer_alone(self, model: Path) -> None:
        mark = booby_trap(model)
        edit(
            model / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["tokenization_own.Own", None]},
            tokenizer_class="Own",
        )
        (model / "tokenizer.json").unlink()
        assert "tokenizer" in refused(model)
        assert not mark.exists()


class TestTokenizer:
    def test_missing(self, model: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (model / name).unlink()
        assert "the directory needs tokenizer.json or the tokenizer's own files" in refused(model)

    def test_broken(self, model: Path) -> None:
        (model / "tokenizer.json").write_text("{")
        assert f"{model}: the tokenizer cannot be loaded" in refused(model)

    def test_without_pad_token_the_end_token_pads(self, model: Path) -> None:
        edit(model / "tokenizer_config.json", pad_token=None, eos_token="[SEP]")  # noqa: S106
        tokenizer = load_tokenizer(model)
        assert tokenizer.pad_token == "[SEP]"
        loaded = load_model(AutoModelForSequenceClassification, model, tokenizer, num_labels=2)
        assert loaded.model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id

    def test_with_neither(self, model: Path) -> None:
        edit(model / "tokenizer_config.json", pad_token=None, eos_token=None)
        assert "the tokenizer has neither a padding nor an end token (set pad_token in it)" in refused(model)

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "roberta", "bert"])
    def test_a_padding_token_that_the_model_has_no_row_for(self, tmp_path: Path, kind: str) -> None:
        """One that was added to the tokenizer alone; what else it knows pads, and it is what is exported."""
        model = make_model(tmp_path / "model", kind)
        edit(model / "tokenizer_config.json", eos_token="[SEP]")  # noqa: S106
        edit(model / "config.json", pad_token_id=0 if kind == "roberta" else None)
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.add_special_tokens({"pad_token": "<added>"})
        tokenizer.save_pretrained(model)
        loaded = load(model)
        assert loaded.tokenizer.pad_token == ("[PAD]" if kind == "roberta" else "[SEP]")
        assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
        texts = ["the film", "the film was warm and bright"]
        alone, together = (
            [loaded.model.eval()(**loaded.tokenizer(part, padding=True, return_tensors="pt")).logits for part in parts]
            for parts in ([[text] for text in texts], [texts])
        )
        torch.testing.assert_close(torch.cat(alone), together[0], rtol=0, atol=1e-5)
        loaded.tokenizer.save_pretrained(tmp_path / "out")
        assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id < loaded.model.config.vocab_size

    def test_a_padding_token_without_a_row_and_nothing_else(self, model: Path) -> None:
        edit(model / "config.json", pad_token_id=None)
        edit(model / "tokenizer_config.json", pad_token="<added>", eos_token=None, unk_token=None)  # noqa: S106
        size = json.loads((model / "config.json").read_text())["vocab_size"]
        assert f"{model}: the tokenizer pads with token {size}, but the model knows {size} tokens only" in refused(
            model
        )

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_pads_on_the_side_that_it_says(self, model: Path, side: str) -> None:
        """It is saved with what was tuned; batches of training are padded without it."""
        edit(model / "tokenizer_config.json", padding_side=side)
        assert load_tokenizer(model).padding_side == side


HEADS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("bert", {}, {"classifier"}),
    ("bert", {"with_pooler": False}, {"bert.pooler.dense", "classifier"}),
    ("distilbert", {}, {"pre_classifier", "classifier"}),
    ("roberta", {"with_pooler": False}, {"classifier.dense", "classifier.out_proj"}),
    ("electra", {}, {"classifier.dense", "classifier.out_proj"}),
    ("deberta-v2", {}, {"pooler.dense", "classifier"}),
    ("modernbert", {}, {"head.dense", "head.norm", "classifier"}),
    ("mpnet", {"with_pooler": False}, {"classifier.dense", "classifier.out_proj"}),
    ("llama", {}, {"score"}),
    ("gpt2", {}, {"score"}),
]


class TestBody:
    @pytest.fixture(autouse=True)
    def more_kinds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(KINDS, "xlnet", ("XLNetModel", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}))
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
        monkeypatch.setitem(KINDS, "t5", ("T5Model", sizes))

    def test_without_a_limit(self, tmp_path: Path) -> None:
        model = make_model(tmp_path / "model", "xlnet")
        assert longest_input(model, load_tokenizer(model)) > 10**9
        assert {name.partition(".")[0] for name in load(model).head} == {"sequence_summary", "logits_proj"}

    def test_beside_its_head(self, tmp_path: Path) -> None:
        """T5's finder of answers has no module that is its body."""
        model = make_model(tmp_path / "model", "t5")
        loaded = load_model(AutoModelForQuestionAnswering, model, load_tokenizer(model), num_labels=2)
        assert loaded.head == {"qa_outputs.weight", "qa_outputs.bias"}
        tensors = load_file(model / "model.safetensors")
        del tensors["encoder.block.1.layer.1.DenseReluDense.wi.weight"]
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        told = failure(ExitCode.MODEL_INVALID, load_model, AutoModelForQuestionAnswering, model, loaded.tokenizer)
        assert "1 weights that config.json speaks of are missing: encoder.block.1.layer.1" in told

    def test_answers_of_one_body_have_one_digest(self, tmp_path: Path) -> None:
        """By which adapters on it are known to fit; its new head is random."""
        model = make_model(tmp_path / "model", "t5")
        tokenizer = load_tokenizer(model)
        digests = set()
        for seed in (1, 2):
            torch.manual_seed(seed)
            digests.add(body_digest(load_model(AutoModelForQuestionAnswering, model, tokenizer, num_labels=2)))
        assert len(digests) == 1


class TestHead:
    @pytest.mark.parametrize(
        ("kind", "settings", "modules"), HEADS, ids=[f"{kind}{n}" for n, (kind, *_) in enumerate(HEADS)]
    )
    def test_names(self, tmp_path: Path, kind: str, settings: dict[str, Any], modules: set[str]) -> None:
        loaded = load(make_model(tmp_path / "model", kind, **settings))
        assert {name.rpartition(".")[0] for name in loaded.head} == modules
        trainable = dict(loaded.model.named_parameters())
        assert all(name in trainable for name in loaded.head)

    def test_of_minilm_is_the_classifier_only(self, minilm: Path) -> None:
        loaded = load(minilm, num_labels=2)
        assert loaded.head == {"classifier.weight", "classifier.bias"}
        checkpoint = load_file(minilm / "model.safetensors")
        pooler = loaded.model.bert.pooler.dense.weight
        assert torch.equal(pooler, checkpoint["pooler.dense.weight"].float())
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}

    def test_for_as_many_labels_is_kept(self, model: Path) -> None:
        saved = with_head(model, num_labels=3)
        loaded = load(model, num_labels=3)
        assert torch.equal(loaded.model.classifier.weight, saved)
        assert loaded.head == {"classifier.weight", "classifier.bias"}

    def test_for_other_labels_is_replaced(self, model: Path) -> None:
        with_head(model, num_labels=7)
        loaded = load(model, num_labels=3)
        assert loaded.model.classifier.weight.shape == (3, 32)
        assert loaded.model.config.num_labels == 3
        assert loaded.head == {"classifier.weight", "classifier.bias"}

    def test_of_another_task_is_left_out(self, model: Path) -> None:
        AutoModelForMaskedLM.from_pretrained(model).save_pretrained(model)
        assert {name.rpartition(".")[0] for name in load(model).head} == {"bert.pooler.dense", "classifier"}


def with_head(directory: Path, num_labels: int) -> torch.Tensor:
    """Save a classifier over a body; returns the classifier's weights."""
    model = BertForSequenceClassification.from_pretrained(directory, num_labels=num_labels)
    model.save_pretrained(directory)
    weight: torch.Tensor = model.classifier.weight.detach().clone()
    return weight


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


def pickle_that_touches(mark: Path) -> bytes:
    """A pickle that makes a file when it is read."""
    return pickle.dumps(_Touch(mark))


def test_the_trap_works(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle_that_touches(mark)).close()  # noqa: S301
    assert mark.exists()


def test_errors_of_memory_pass(model: Path) -> None:
    class Greedy:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(RuntimeError, match="allocate memory"):
        load_model(Greedy, model, load_tokenizer(model))


def test_longest_input_reads_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert longest_input(model, load_tokenizer(model)) == 64
