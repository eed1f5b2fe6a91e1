"""The trainer works as whatever user a cluster chooses: what it writes lies in /tmp and in its output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from any_user import USER, as_any_user, folder_of_any_user
from finetune_api.run import Termination
from trainer.tiny import make_run

LORA = {"adapter": {"type": "LoRA"}}


def test_a_user_without_a_name_trains(tmp_path: Path, tiny_bert: Path) -> None:
    run = make_run(tmp_path, tiny_bert, LORA, training={"maxSteps": 2})
    with folder_of_any_user() as scratch, folder_of_any_user() as volume:
        output = run.spec.output.model_copy(update={"uri": f"file://{volume}/tuned"})
        spec = run.spec.model_copy(update={"output": output})
        run = run.model_copy(update={"spec": spec, "work_dir": str(scratch / "work")})
        run_file, word = tmp_path / "run.json", scratch / "word"
        run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        done = subprocess.run(
            as_any_user([sys.executable, "-m", "finetune_trainer", str(run_file)]),
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPYCACHEPREFIX": os.environ["PYTHONPYCACHEPREFIX"],
                "PYTHONDONTWRITEBYTECODE": "1",
                # As in the pod.
                "HOME": str(scratch),
                "HF_HOME": str(scratch / "huggingface"),
                "TERMINATION_MESSAGE_PATH": str(word),
            },
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert Termination.model_validate_json(word.read_text(encoding="utf-8")).reason == "Complete"
        assert (volume / "tuned" / "adapter_model.safetensors").stat().st_uid == USER
