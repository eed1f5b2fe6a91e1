"""Without what the environment is made of, `make` says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make_environment(folder: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    command = ["make", ".venv/ready", f"PYTHON={python}"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert not (folder / ".venv").exists()
    return done


def test_a_python_is_asked_for(tmp_path: Path) -> None:
    assert "Python 3.11 or later is needed" in make_environment(tmp_path, "").stderr


@pytest.mark.parametrize("lacking", ["ensurepip", "venv"])
def test_a_python_that_makes_no_environment_is_told_before_it_tries(tmp_path: Path, lacking: str) -> None:
    """As Debian's has it without python3-venv."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{lacking}.py").write_text(f"raise ModuleNotFoundError('{lacking}')\n")
    done = make_environment(tmp_path, sys.executable, PYTHONPATH=str(modules))
    assert done.stderr.splitlines()[0] == (
        f"{sys.executable} lacks the modules venv and ensurepip; "
        "on Debian and Ubuntu they are in the package python3-venv"
    )
