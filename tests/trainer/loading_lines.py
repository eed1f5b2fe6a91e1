"""The lines of Python that `kubectl finetune result` prints for an output, and what they make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune_api.run import Run
from finetune_cli.kubectl.result import how_to_load
from trainer.adapted import TEXTS
from trainer.runs import output

# A user's own script: it knows the lines, and has nothing of ours to import.
_USER = """
import json, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("finetune_"):
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
texts, answer = json.loads(sys.argv[1]), sys.argv[2]
{lines}
import torch
from safetensors.torch import save_file
inputs = tokenizer(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**inputs).logits
save_file({{"logits": logits.float().contiguous()}}, answer)
labels = [model.config.id2label[number] for number in range(logits.shape[-1])]
print(json.dumps({{"labels": labels, "class": type(model).__name__}}))
"""


def lines_of(run: Run) -> str:
    """They say where the output is, and go on as its model card does."""
    code = how_to_load(run.spec.to_json(), f"file://{output(run)}").partition("\n")[2].partition("\nIts README.md")[0]
    card = (output(run) / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    given, _, rest = code.partition("\n")
    assert (given, rest) == (f'directory = "{output(run)}"', card)
    return code


def names_left(run: Run) -> dict[str, Any]:
    """What the lines leave when they are run in this process: `model`, `tokenizer` and others."""
    known: dict[str, Any] = {}
    exec(lines_of(run), known)  # noqa: S102
    return known


def loaded_by_a_user(lines: str, scratch: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits of TEXTS and what else a fresh process says, which loads the model by these lines."""
    script, answer = scratch / "user.py", scratch / "logits.safetensors"
    script.write_text(_USER.format(lines=lines), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", str(script), json.dumps(TEXTS), str(answer)],
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch,
        env=os.environ | {"HF_MODULES_CACHE": str(scratch / "modules")},
    )
    assert done.returncode == 0, done.stderr
    return load_file(answer)["logits"], json.loads(done.stdout.splitlines()[-1])
