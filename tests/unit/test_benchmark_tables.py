"""A table of figures in the documentation is what its benchmark makes of the committed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("forgetting.md", ["benchmarks/forgetting.py", "--table"]),
        ("operator-scale.md", ["benchmarks/operator_scale.py", "table"]),
    ],
)
def test_the_tables_are_those_of_the_results(page: str, command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    tables = [table for table in done.stdout.split("\n\n") if table.startswith("|")]
    assert tables
    for table in tables:
        assert table.strip() in text, f"put what `python {' '.join(command)}` prints into docs/{page}"
