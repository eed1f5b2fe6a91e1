"""Full tuning's ways to change less: gradual unfreezing, and a penalty on the distance to the start."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_trainer.loop import TrainingLoop
from finetune_trainer.optim import Trained
from finetune_trainer.strategies.full import _distance, depths
from trainer.extraction import tagging_run
from trainer.runs import complete, end_state, interrupted, make_loop, without_dropout
from trainer.test_loop import scripted
from trainer.tiny import KINDS, make_model, make_run
from trainer.tiny_lm import IM_END, PAD, make_chats, make_lm, make_lm_run, make_tokenizer

pytestmark = pytest.mark.usefixtures("unchecked_export")


def full(**fields: Any) -> dict[str, Any]:
    return {"full": fields}


def weights(loop: TrainingLoop) -> dict[str, Tensor]:
    return {name: entry.parameter.detach().clone() for name, entry in loop.tuning.trained.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_layers_thaw_from_the_top(tiny_bert: Path, tmp_path: Path) -> None:
    """The model has 2 layers: head alone, then layer 1, then layer 0, then the embeddings."""
    strategy = full(gradualUnfreezing={"everySteps": 2})
    loop = make_loop(make_run(tmp_path, tiny_bert, strategy, training={"maxSteps": 10, "warmupRatio": "0"}))
    depth = depths(loop.model, frozenset(name for name, entry in loop.tuning.trained.items() if entry.is_head))
    top = max(depth.values())
    assert top == 3
    loop.model.train()
    for step in range(8):
        before = weights(loop)
        loop.train_step()
        expected = {name for name in before if depth[name] >= top - step // 2}
        moved = changed(before, weights(loop))
        assert moved <= expected
        # Embeddings of words that are not in the batch stay without being frozen; all else must move.
        assert {name for name in expected if "embeddings" not in name} <= moved


ELSEWHERE: list[tuple[str, str, dict[str, Any], set[str], set[str]]] = [
    (
        "deberta-v2",
        "DebertaV2Model",
        KINDS["deberta-v2"][1] | {"conv_kernel_size": 3, "conv_act": "gelu"},
        {"deberta.encoder.LayerNorm", "deberta.encoder.conv.conv", "deberta.encoder.conv.LayerNorm"}
        | {f"deberta.embeddings.{one}" for one in ("LayerNorm", "word_embeddings", "position_embeddings")}
        | {"deberta.encoder.rel_embeddings"},
        {"pooler.dense", "classifier"},
    ),
    (
        "opt",
        "OPTModel",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 16},
        {"model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.project_in"},
        {"model.decoder.final_layer_norm", "model.decoder.project_out", "score"},
    ),
    (
        "bart",
        "BartModel",
        {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64}
        | {"decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2},
        {"model.shared", "model.encoder.embed_positions", "model.encoder.layernorm_embedding"}
        | {"model.decoder.embed_positions", "model.decoder.layernorm_embedding"},
        {"classification_head.dense", "classification_head.out_proj"},
    ),
    (
        "albert",
        "AlbertModel",
        KINDS["bert"][1] | {"embedding_size": 16},
        {f"albert.embeddings.{name}" for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")}
        | {"albert.embeddings.LayerNorm", "albert.encoder.embedding_hidden_mapping_in"},
        {"albert.pooler", "classifier"},
    ),
]


@pytest.mark.parametrize(("kind", "name", "shape", "below", "above"), ELSEWHERE, ids=[one[0] for one in ELSEWHERE])
def test_what_is_below_and_above_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, shape: Any, below: set[str], above: set[str]
) -> None:
    """By where it works, not by where it stands among the modules; ALBERT's two layers are one."""
    monkeypatch.setitem(KINDS, kind, (name, shape))
    model = make_model(tmp_path / "model", kind)
    loop = make_loop(make_run(tmp_path, model, full(frozenLayers=1), training={"maxSteps": 1}))
    trained = {one for one, entry in loop.tuning.trained.items() if entry.is_head}
    depth = depths(loop.model, frozenset(trained))
    top = max(depth.values())
    assert top == (2 if kind == "albert" else 3)
    assert {one.rpartition(".")[0] for one, level in depth.items() if level == 0} == below
    assert {one.rpartition(".")[0] for one, level in depth.items() if level == top} == above
    assert not {one.rpartition(".")[0] for one in loop.tuning.trained} & below


def test_frozen_layers_never_thaw(tiny_bert: Path, tmp_path: Path) -> None:
    strategy = full(frozenLayers=1, gradualUnfreezing={"everySteps": 1})
    loop = make_loop(make_run(tmp_path, tiny_bert, strategy, training={"maxSteps": 6}))
    before = {name: parameter.clone() for name, parameter in loop.model.named_parameters()}
    loop.run()
    still = {name for name, parameter in loop.model.named_parameters() if torch.equal(parameter, before[name])}
    assert {name for name in before if ".layer.0." in name or "embeddings" in name} <= still
    assert not [name for name in still if ".layer.1." in name]


def test_an_interrupted_run_thaws_on(tiny_bert: Path, tmp_path: Path) -> None:
    make = functools.partial(
        make_run,
        model=tiny_bert,
        strategy=full(gradualUnfreezing={"everySteps": 2}, l2ToStart="0.1"),
        training={"maxSteps": 8},
        checkpoint={"everySteps": 100},
    )
    whole, cut = make(tmp_path / "whole"), make(tmp_path / "cut")
    make_loop(whole).run()
    interrupted(make_loop(cut), 3)
    make_loop(cut).run()
    assert end_state(cut) == end_state(whole)


def test_patience_is_not_tried_before_all_is_thawed(tiny_bert: Path, tmp_path: Path) -> None:
    """The embeddings thaw before step 7; the best weights may be earlier ones all the same."""
    run = make_run(
        tmp_path,
        tiny_bert,
        full(gradualUnfreezing={"everySteps": 2}),
        training={"maxSteps": 12},
        evaluation={"everySteps": 2, "earlyStopping": {"patience": 1}},
    )
    state = scripted(make_loop(run), [0.5, 0.6, 0.5, 0.5, 0.5, 0.6]).run()
    assert (state.step, state.best_step, state.stopped_early) == (8, 2, True)


def test_distance_to_the_start_is_penalised(still_bert: Path, tmp_path: Path) -> None:
    """Loss and gradient at a moved model: those without the penalty, plus the penalty's written out here."""
    loops = [
        without_dropout(
            make_loop(make_run(tmp_path / name, still_bert, strategy, training={"maxSteps": 4, "maxGradNorm": "1e9"}))
        )
        for name, strategy in (("plain", full()), ("held", full(l2ToStart="0.3")))
    ]
    start = weights(loops[0])
    found: list[tuple[float, dict[str, Tensor]]] = []
    for loop in loops:
        gradients: dict[str, Tensor] = {}

        def keep(loop: TrainingLoop = loop, gradients: dict[str, Tensor] = gradients) -> None:
            gradients.update({n: e.parameter.grad.clone() for n, e in loop.tuning.trained.items()})  # type: ignore[union-attr]

        torch.manual_seed(3)
        with torch.no_grad():
            for entry in loop.tuning.trained.values():
                entry.parameter.add_(0.05 * torch.randn_like(entry.parameter))
        loop.optimizer.step = keep  # type: ignore[method-assign, assignment]
        found.append((loop.train_step(), gradients))
    (plain_loss, plain), (held_loss, held) = found
    moved = weights(loops[1])
    body = [name for name, entry in loops[1].tuning.trained.items() if not entry.is_head]
    assert 0 < len(body) < len(moved)
    distance = sum((moved[name] - start[name]).double().square().sum().item() for name in body)
    assert held_loss - plain_loss == pytest.approx(0.3 * distance, rel=1e-4)
    for name, gradient in held.items():
        extra = 2 * 0.3 * (moved[name] - start[name]) if name in body else torch.zeros_like(gradient)
        assert torch.allclose(gradient, plain[name] + extra, atol=1e-5), name


def test_penalty_is_a_term_of_its_own(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.progress._MIN_INTERVAL_SECONDS", 0.0)
    loop = make_loop(make_run(tmp_path, tiny_bert, full(l2ToStart="0.5"), training={"maxSteps": 3}))
    loop.run()
    latest = loop.progress.latest
    assert latest.loss_terms.keys() == {"task", "penalty"}
    assert latest.loss_terms["penalty"] > 0


class Copies(TorchDispatchMode):
    """Counts the tensors that are copied to another device or type."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_the_start_moves_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step it would take longer than the step itself."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)  # as if it were a GPU
    layer = nn.Linear(3, 2)
    distance = _distance(0.3, {name: Trained(parameter) for name, parameter in layer.named_parameters()})
    assert distance is not None
    layer.to("meta")
    copies = []
    for _ in range(3):
        with Copies() as found:
            assert distance().device.type == "meta"
        copies.append(found.count)
    assert copies == [2, 0, 0]


HELD_WHILE_THAWING = full(gradualUnfreezing={"everySteps": 2}, l2ToStart="0.1")


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "electra"])
def test_the_penalty_is_nothing_until_a_layer_of_the_body_thaws(tmp_path: Path, kind: str) -> None:
    """Nothing of these bodies stands as high as the head, so for two steps the head alone is trained."""
    model = make_model(tmp_path / "model", kind)
    loop = make_loop(make_run(tmp_path / "run", model, HELD_WHILE_THAWING, training={"maxSteps": 6}))
    loop.model.train()
    penalties = []
    for _ in range(5):
        loop.train_step()
        penalties.append(loop.progress.latest.loss_terms["penalty"])
    assert penalties[:3] == [0, 0, 0]
    assert min(penalties[3:]) > 0


def test_tags_are_learnt_by_the_strategy_of_the_documentation(tiny_bert: Path, tmp_path: Path) -> None:
    complete(tagging_run(tmp_path, tiny_bert, HELD_WHILE_THAWING, num_train=24, training={"maxSteps": 6}))


def test_where_the_head_alone_is_trained_nothing_is_held(tmp_path: Path) -> None:
    strategy = full(frozenLayers=2, l2ToStart="0.1")
    model = make_model(tmp_path / "model", "distilbert")
    loop = make_loop(make_run(tmp_path / "run", model, strategy, training={"maxSteps": 3}))
    assert all(entry.is_head for entry in loop.tuning.trained.values())
    assert loop.run().step == 3


@pytest.mark.parametrize("kind", ["untied", "llama"])
def test_an_end_token_that_pads_is_trained(tmp_path: Path, kind: str) -> None:
    """As it would be beside a padding token: what it means in the middle of a chat, not only that it ends a turn."""
    model = make_lm(tmp_path / "model", kind)
    moved = []
    for pad in (PAD, None):
        tokenizer = make_tokenizer(eos=IM_END, pad=pad)
        tokenizer.save_pretrained(model)
        run = make_lm_run(tmp_path / f"run-{pad}", model, full(), make_chats(24), training={"weightDecay": "0.1"})
        loop = make_loop(run)
        assert (loop.task.tokenizer.pad_token_id == tokenizer.eos_token_id) == (pad is None)
        before = loop.model.get_input_embeddings().weight.detach().clone()
        loop.run()
        moved.append((loop.model.get_input_embeddings().weight.detach() - before)[tokenizer.eos_token_id])
    assert moved[1].abs().max() > 1e-4
    torch.testing.assert_close(moved[0], moved[1])
