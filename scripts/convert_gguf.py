"""Turn a Llama model in a GGUF file into a directory that from_pretrained loads: python convert_gguf.py FILE DIRECTORY.

The 4-bit weights become bfloat16 numbers of the same value, as near as that holds them.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main() -> None:
    file, directory = map(Path, sys.argv[1:])
    quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = quantized.config.to_dict()
    # With it save_pretrained refuses: it would have to write the quantized form.
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantized.state_dict())
    model.to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)


if __name__ == "__main__":
    main()
