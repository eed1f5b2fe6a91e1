"""Reads the configuration of a model, and no code that comes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig


def read_config(directory: Path, **changes: Any) -> PretrainedConfig:
    """The config.json of a model directory, with other values for some of it. Raises whatever transformers does."""
    config: PretrainedConfig = AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **changes
    )
    return config
