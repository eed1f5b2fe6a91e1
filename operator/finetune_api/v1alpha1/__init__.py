"""FineTuneJob, version v1alpha1."""

from finetune_api.base import GROUP
from finetune_api.v1alpha1.job import API_VERSION, KIND, PLURAL, VERSION, FineTuneJob, FineTuneJobSpec

__all__ = ["API_VERSION", "GROUP", "KIND", "PLURAL", "VERSION", "FineTuneJob", "FineTuneJobSpec"]
