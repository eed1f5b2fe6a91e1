"""What the server of `processes` does once before it forks: all that every run of a tiny model would do again."""

from transformers import BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import finetune_trainer.adapters.modeling_adapters
import finetune_trainer.strategies.full
import finetune_trainer.strategies.lora
import finetune_trainer.strategies.stacking
import finetune_trainer.tasks.text_classification

get_checkpoint_conversion_mapping("bert")  # compiles a thousand regular expressions and keeps them

__all__ = ["BertForSequenceClassification", "PreTrainedTokenizerFast", "finetune_trainer"]
