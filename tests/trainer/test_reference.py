"""The same loss curve and score as Hugging Face's Trainer, with peft or without: for what these do rightly.

That is no accumulation of gradients.

Both start from the same weights (with the same head), see the same rows in the same order, and clip and decay alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from finetune_trainer.evaluation import evaluate
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.stop import StopFlag
from trainer.runs import make_loop, without_dropout
from trainer.tiny import FULL, make_rows, make_run, write_rows
from trainer.tiny_lm import make_lm

STEPS = 12
BATCH = 8
RATE = 2e-3
TRAINING = {
    "maxSteps": STEPS,
    "batchSize": BATCH,
    "learningRate": str(RATE),
    "headLearningRate": str(RATE),
    "schedule": "Linear",
    "warmupRatio": "0",  # ours begins one step further, at a rate above zero
    "weightDecay": "0.01",
}
Row = dict[str, Any]


def curve_of(loop: TrainingLoop) -> tuple[list[float], list[int]]:
    """Our losses, step by step, and the rows in the order they were trained on."""
    loop.model.train()
    losses, order = [], []
    draw = loop.sampler.next

    def noted() -> list[int]:
        order.extend(rows := draw())
        return rows

    loop.sampler.next = noted  # type: ignore[method-assign]
    for _ in range(STEPS):
        losses.append(loop.train_step())
    return losses, order


def curve_of_theirs(
    model: torch.nn.Module, rows: Sequence[Row], collator: Any, directory: Path, rate: float, weight_decay: float
) -> list[float]:
    """The Trainer's losses over the rows in this order."""
    losses: list[float] = []

    class InOrder(Trainer):  # the loss before it is rounded and averaged
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments: Any, **settings: Any) -> Any:
            found = super().compute_loss(*arguments, **settings)
            losses.append((found[0] if isinstance(found, tuple) else found).item())
            return found

    InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory),
            max_steps=STEPS,
            learning_rate=rate,
            lr_scheduler_type="linear",
            weight_decay=weight_decay,
            max_grad_norm=1.0,
            per_device_train_batch_size=BATCH,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
        ),
        train_dataset=list(rows),
        data_collator=collator,
    ).train()
    return losses


def compared(
    run: Any, encode: Callable[[PreTrainedTokenizerBase, Row, Sequence[str]], Row], collator: Any, directory: Path,
    tuned: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model,
) -> tuple[TrainingLoop, torch.nn.Module]:  # fmt: skip
    """Assert that both curves agree to 1e-4 and that something is learnt at all; returns what was trained."""
    loop = without_dropout(make_loop(run))
    torch.manual_seed(run.spec.training.seed)
    model = tuned(loop.task.load_model().model)  # the same head, drawn from the same seed
    ours, order = curve_of(loop)
    lines = Path(run.manifest_dir, "train.jsonl").read_text().splitlines()
    rows = [encode(loop.task.tokenizer, json.loads(line), loop.task.labels) for line in lines]
    in_order = [rows[loop.task.train[number].row] for number in order]
    training = run.spec.training
    theirs = curve_of_theirs(
        model, in_order, collator(loop), directory, float(training.learning_rate), float(training.weight_decay)
    )
    assert len(theirs) == len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[-1] < ours[0] - 0.01
    return loop, model


def same_score(loop: TrainingLoop, model: torch.nn.Module) -> None:
    """Assert that both are worth the same on the evaluation rows."""
    ours, theirs = (
        evaluate(one, one, loop.task, loop.task.evaluation, BATCH, torch.device("cpu"), StopFlag())
        for one in (loop.model, model)
    )
    assert ours == pytest.approx(theirs, abs=1e-3)


def tuned_as(
    run: Any, task_type: peft.TaskType | None, head: list[str] | None = None
) -> Callable[[torch.nn.Module], torch.nn.Module]:
    """What the Trainer is to tune: the model itself or, where the run has LoRA, peft's.

    Peft's weights are drawn anew, so they are given those that ours start from.
    """
    if run.spec.strategy.adapter is None:
        return lambda model: model
    start = {name: parameter.detach().clone() for name, parameter in make_loop(run).model.named_parameters()}
    targets = run.spec.strategy.adapter.target_modules

    def wrapped(model: torch.nn.Module) -> torch.nn.Module:
        config = peft.LoraConfig(
            task_type=task_type,
            r=2,
            lora_alpha=4,
            lora_dropout=0.0,
            target_modules=list(targets),
            modules_to_save=head,
        )
        found = peft.get_peft_model(model, config)
        trained = {name: parameter for name, parameter in found.named_parameters() if parameter.requires_grad}
        assert trained
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(start[name])
        return found

    return wrapped


def lora(*targets: str) -> Row:
    return {"adapter": {"type": "LoRA", "rank": 2, "targetModules": list(targets)}}


BERT_LORA = lora("query", "value")


def classification(tokenizer: PreTrainedTokenizerBase, row: Row, labels: Sequence[str]) -> Row:
    return {**tokenizer(row["text"]), "labels": labels.index(row["label"])}


def plain_run(
    directory: Path,
    model: Path,
    strategy: Any,
    rows: list[Row] | None = None,
    training: Row | None = None,
    **fields: Any,
) -> Any:
    run = make_run(
        directory,
        model,
        strategy,
        training={**TRAINING, **(training or {})},
        num_train=64,  # whole batches, because theirs are cut in this order
        data={
            "train": {"uri": "file://train.jsonl"},
            "evaluation": {"uri": "file://evaluation.jsonl"},
            "deduplicate": False,
        },
        **fields,
    )
    if rows is not None:
        write_rows(directory / "train.jsonl", rows)
        write_rows(directory / "evaluation.jsonl", rows[:8])
    return run


@pytest.mark.parametrize("strategy", [FULL, BERT_LORA], ids=["full", "LoRA"])
def test_text_classification(still_bert: Path, tmp_path: Path, strategy: Row) -> None:
    run = plain_run(tmp_path, still_bert, strategy)
    tuned = tuned_as(run, peft.TaskType.SEQ_CLS)
    same_score(
        *compared(run, classification, lambda loop: DataCollatorWithPadding(loop.task.tokenizer), tmp_path, tuned)
    )


def tags(tokenizer: PreTrainedTokenizerBase, row: Row, labels: Sequence[str]) -> Row:
    """As transformers' own example does it: the tag at a word's first token, -100 elsewhere."""
    encoded = tokenizer(row["tokens"], is_split_into_words=True)
    words = encoded.word_ids()
    found = [
        -100 if word is None or word == before else labels.index(row["tags"][word])
        for word, before in zip(words, [None, *words], strict=False)
    ]
    return {**encoded, "labels": found}


@pytest.mark.parametrize("strategy", [FULL, BERT_LORA], ids=["full", "LoRA"])
def test_token_classification(still_bert: Path, tmp_path: Path, strategy: Row) -> None:
    rows = []
    for row in make_rows(64, num_labels=3):
        words = row["text"].split()
        telling = {"good": "warm fresh sharp rich bright", "bad": "dull poor weak flat tired"}
        found = [next((f"B-{name}" for name, some in telling.items() if word in some.split()), "O") for word in words]
        rows.append({"tokens": [*words, "worldly"], "tags": [*found, "O"]})  # a word of several tokens
    run = plain_run(tmp_path, still_bert, strategy, rows, task="TokenClassification")
    tuned = tuned_as(run, peft.TaskType.TOKEN_CLS)
    same_score(
        *compared(run, tags, lambda loop: DataCollatorForTokenClassification(loop.task.tokenizer), tmp_path, tuned)
    )


def ends(tokenizer: PreTrainedTokenizerBase, row: Row, _: Sequence[str]) -> Row:
    encoded = tokenizer(row["question"], row["context"], padding="max_length", max_length=48)
    start = row["answers"]["answer_start"][0]
    first = encoded.char_to_token(start, sequence_index=1)
    last = encoded.char_to_token(start + len(row["answers"]["text"][0]) - 1, sequence_index=1)
    return {**encoded, "start_positions": first, "end_positions": last}


@pytest.mark.parametrize("strategy", [FULL, BERT_LORA], ids=["full", "LoRA"])
def test_question_answering(still_bert: Path, tmp_path: Path, strategy: Row) -> None:
    """Ours makes classes of the context alone, theirs of question and padding too: so theirs are shut out as well."""
    rows = []
    for number, row in enumerate(make_rows(64)):
        words = row["text"].split()
        place = number % len(words)
        start = len(" ".join(words[:place])) + (place > 0)
        answers = {"text": [words[place]], "answer_start": [start]}
        rows.append({"question": f"a {words[place]}", "context": row["text"], "answers": answers})

    def with_the_context_alone(model: torch.nn.Module) -> torch.nn.Module:
        forward = model.forward

        def masked(*arguments: Any, start_positions: Any = None, end_positions: Any = None, **inputs: Any) -> Any:
            output = forward(*arguments, **inputs)
            if start_positions is None:
                return output
            allowed = (inputs["token_type_ids"] == 1) & (inputs["attention_mask"] == 1)
            allowed[:, 0] = True
            allowed &= inputs["input_ids"] != 3  # [SEP]
            logits = [one.masked_fill(~allowed, -torch.inf) for one in (output.start_logits, output.end_logits)]
            targets = (start_positions, end_positions)
            output.loss = sum(map(torch.nn.functional.cross_entropy, logits, targets)) / 2
            return output

        model.forward = masked  # type: ignore[method-assign]
        return model

    run = plain_run(tmp_path, still_bert, strategy, rows, task="QuestionAnswering")
    # Not peft's class for answers: it keeps the token types from the model.
    wrapped = tuned_as(run, None, ["qa_outputs"])
    same_score(
        *compared(
            run,
            ends,
            lambda loop: default_data_collator,
            tmp_path,
            lambda model: wrapped(with_the_context_alone(model)),
        )
    )


def text(tokenizer: PreTrainedTokenizerBase, row: Row, _: Sequence[str]) -> Row:
    return {"input_ids": [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]}


def of_language(loop: TrainingLoop) -> Any:
    return DataCollatorForLanguageModeling(loop.task.tokenizer, mlm=False)


TEXTS = [{"text": row["text"]} for row in make_rows(64)]
DECODER_LORA = lora("q_proj", "v_proj")


@pytest.mark.parametrize("strategy", [FULL, DECODER_LORA], ids=["full", "LoRA"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_text_generation(tmp_path: Path, kind: str, strategy: Row) -> None:
    """Ours packs, theirs pads. Not GPT-2: there theirs divides by the first tokens too, which nothing predicts."""
    run = plain_run(tmp_path / "run", make_lm(tmp_path / "model", kind), strategy, TEXTS, task="TextGeneration")
    tuned = tuned_as(run, peft.TaskType.CAUSAL_LM)
    same_score(*compared(run, text, of_language, tmp_path, tuned))


NUM_VIRTUAL_TOKENS = 4
PROMPTS = {"Prompt": peft.PromptTuningConfig, "Prefix": peft.PrefixTuningConfig}


@pytest.mark.parametrize("kind", PROMPTS)
def test_text_generation_by_a_prompt(tmp_path: Path, kind: str) -> None:
    """Peft's prompt and prefix, from the vectors that ours start from. Theirs would decay, which ours never do, and
    learn the first token too, which stands after no other.
    """
    run = plain_run(
        tmp_path / "run",
        make_lm(tmp_path / "model", "llama"),
        {"promptTuning": {"type": kind, "numVirtualTokens": NUM_VIRTUAL_TOKENS}},
        TEXTS,
        task="TextGeneration",
        training={"learningRate": "3e-2", "headLearningRate": "3e-2", "weightDecay": "0"},
    )
    make_loop(run).tuning.save(tmp_path / "start")

    def tuned(model: torch.nn.Module) -> torch.nn.Module:
        config = PROMPTS[kind](task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=NUM_VIRTUAL_TOKENS)
        found = peft.get_peft_model(model, config)
        start = load_file(tmp_path / "start" / "adapter_model.safetensors")["prompt_embeddings"]
        with torch.no_grad():
            found.prompt_encoder["default"].embedding.weight.copy_(start)
        return found

    def encode(tokenizer: PreTrainedTokenizerBase, row: Row, labels: Sequence[str]) -> Row:
        encoded = text(tokenizer, row, labels)
        return {**encoded, "labels": [-100, *encoded["input_ids"][1:]]}

    compared(run, encode, lambda loop: DataCollatorForTokenClassification(loop.task.tokenizer), tmp_path, tuned)
