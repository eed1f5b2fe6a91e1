"""Adapter layers of our own, where no library has them."""
