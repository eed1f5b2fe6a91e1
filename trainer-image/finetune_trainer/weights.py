"""The names that files of weights have."""

SUFFIX = ".safetensors"
SINGLE = f"model{SUFFIX}"
INDEX = f"{SINGLE}.index.json"
"""Says which of several files holds which weights."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Patterns of weights that run code when they are read, so they never are."""
