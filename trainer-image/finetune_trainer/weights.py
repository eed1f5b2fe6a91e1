"""The names that a model's files have: which are weights, and which of them are read."""

SUFFIX = ".safetensors"
SINGLE = f"model{SUFFIX}"
INDEX = f"{SINGLE}.index.json"
"""Says which of several files holds which weights."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Patterns of weights that run code when they are read, so they never are."""
MODEL_FILES = ("*.json", f"*{SUFFIX}", "*.txt", "*.model", "*.jinja")
"""Patterns of what is downloaded of a model: weights are read from safetensors only, so no pickle and no code."""
NOT_MODEL_FILES = ("*/*", "consolidated*")
"""What a model is loaded from lies at the top; these hold the same weights once more, for other programs."""
