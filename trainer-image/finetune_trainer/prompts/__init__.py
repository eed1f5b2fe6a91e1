"""Soft prompts: the model that carries one, what one starts from, and how it is saved."""
