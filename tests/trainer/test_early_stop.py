"""A container's first process is told to stop while it still imports its libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode


@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="a process namespace needs root on Linux")
def test_a_signal_before_the_libraries_are_there_ends_the_trainer(tmp_path: Path) -> None:
    """Without a handler it would be lost: the first process of a namespace is not ended by it."""
    trainer = [sys.executable, "-m", "finetune_trainer", str(tmp_path / "none.json")]
    outside = subprocess.Popen(["unshare", "--fork", "--pid", "--kill-child", *trainer])
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
    while outside.poll() is None:
        for child in children.read_text().split():
            subprocess.run(["kill", "-TERM", child], check=False, capture_output=True)
        time.sleep(0.05)
    assert outside.returncode == ExitCode.STOPPED
