"""Reloads exports for the tests: each in a process forked from this one, which has imported transformers and peft.

A fresh process imports them for seconds each time, which is most of what an export takes; those that `finetune run` and
the launcher start in tests are fresh. Nothing of ours is imported here either.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401
import transformers.utils.hub
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig  # noqa: F401
from transformers import dynamic_module_utils as code


def main() -> None:
    """Answer each line of JSON, a command and its environment, with how it ended."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(run(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run(script: str, arguments: list[str], env: dict[str, str], said: str) -> int:
    """Run a script as Python would; what it says goes into a file."""
    with Path(said).open("w", encoding="utf-8") as stderr:
        os.dup2(stderr.fileno(), 2)
        os.environ.clear()
        os.environ.update(env)
        for module in (code, transformers.utils.hub):  # it was read when they were imported
            vars(module)["HF_MODULES_CACHE"] = env["HF_MODULES_CACHE"]
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc()
            return 1
        return 0


if __name__ == "__main__":
    main()
