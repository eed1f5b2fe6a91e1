"""The cluster behind a small protocol: what the engine may ask of it, and nothing more."""
