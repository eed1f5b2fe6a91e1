"""A small Hugging Face hub on this machine: a folder of repositories behind the part of its API that is read here."""
