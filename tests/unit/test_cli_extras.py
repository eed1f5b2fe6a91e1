"""A command whose packages are not installed says which, and how to get them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract_cases import valid_job
from finetune_api.documents import write_document


@pytest.mark.parametrize(
    ("module", "command", "missing", "said"),
    [
        ("finetune_cli.main", ["run", "job.yaml"], ["rich"],
         "finetune: needs rich, which cannot be found; in a checkout of the finetune-operator: "
         "pip install '.[cli,trainer]'"),
        ("finetune_cli.main", ["run", "job.yaml"], ["prometheus_client"], "finetune: needs prometheus_client, which"),
        ("finetune_cli.main", ["run", "job.yaml", "--metrics-port=0"], ["torch", "peft"],
         "job: training needs torch, peft, which cannot be found; in a checkout of the finetune-operator: "
         "pip install '.[cli,trainer]'"),
        ("finetune_cli.kubectl.main", ["list"], ["kubernetes", "rich"],
         "kubectl finetune: needs kubernetes, rich, which cannot be found; in a checkout of the finetune-operator: "
         "pip install '.[cli]'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(
    tmp_path: Path, module: str, command: list[str], missing: list[str], said: str
) -> None:
    (tmp_path / "job.yaml").write_text(write_document(valid_job()))
    code = (
        f"import sys; sys.modules |= dict.fromkeys({missing}); from {module} import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_validate_needs_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(write_document(valid_job()))
    code = (
        "import sys; sys.modules |= dict.fromkeys(['rich', 'prometheus_client', 'torch', 'kubernetes']); "
        "from finetune_cli.main import main; sys.exit(main(['validate', 'job.yaml']))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
