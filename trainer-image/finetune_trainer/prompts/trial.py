"""Tries a soft prompt before it is trained: that the model reads it, and that it can be exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.v1alpha1.strategy import PromptTuningStrategy
from finetune_trainer.export import is_rounding
from finetune_trainer.export.reload import logits_of
from finetune_trainer.out_of_memory import is_out_of_memory
from finetune_trainer.prompts.modeling_prompt import PromptedModel
from finetune_trainer.prompts.place import refused

# What the code of a kind of model raises for an input that it was not written for.
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_read(strategy: PromptTuningStrategy, model: PromptedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's logits with its prompt. Raises TrainerError when it cannot be trained by them."""
    prompt = list(model.prompt.parameters())
    with _tried(strategy, model.model, model, "it fails with one"):
        with torch.no_grad():
            logits = logits_of(model(**inputs))
        model.train()  # some kinds can be trained in no other mode
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):  # dropout must not change later draws
            learnt = logits_of(model(**inputs)).sum()
        gradients = torch.autograd.grad(learnt, prompt, allow_unused=True) if learnt.requires_grad else ()
    if all(gradient is None or not gradient.any() for gradient in gradients):
        raise refused(strategy, model.model, "what it computes does not depend on one")
    return logits


def pefts_logits(
    strategy: PromptTuningStrategy, model: PreTrainedModel, prompt: Tensor, inputs: Mapping[str, Tensor]
) -> Tensor:
    """A language model's logits with a prompt as peft puts it there. Raises TrainerError when peft cannot."""
    from finetune_trainer.prompts import peft_format  # peft takes seconds to import

    with _tried(strategy, model, model, "peft, in whose format it is exported, cannot put one there"):
        return peft_format.pefts_logits(prompt, model, inputs).float()


def check_same(strategy: PromptTuningStrategy, model: PreTrainedModel, ours: Tensor, theirs: Tensor) -> None:
    """Raise TrainerError unless peft's model gives the logits of the one that is trained."""
    difference = (ours - theirs).abs().max().item()
    if not is_rounding(difference, ours):
        reason = f"peft, in whose format it is exported, puts one elsewhere: logits differ by {difference:.1e}"
        raise refused(strategy, model, reason)


@contextmanager
def _tried(strategy: PromptTuningStrategy, base: PreTrainedModel, module: nn.Module, what: str) -> Iterator[None]:
    """Run a module as in evaluation; what goes wrong in its code is told as the reason why it takes no prompt."""
    was_training = module.training
    module.eval()
    try:
        yield
    except _FAULTS as error:
        if is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:150] or type(error).__name__
        raise refused(strategy, base, f"{what} ({words})") from None
    finally:
        module.train(was_training)
