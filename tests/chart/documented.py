"""What the documents tell people to type: their blocks, by section."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from chart.rendering import ROOT
from testbed.apiserver import ApiServer

DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(document: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    text = (DOCS / document).read_text(encoding="utf-8")
    [found] = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def script(document: str, heading: str) -> str:
    """The shell commands of a section."""
    return "\n".join(blocks(section(document, heading), "sh"))


def typed(commands: str, server: ApiServer, folder: Path) -> str:
    """What a shell prints that runs the commands in a folder, with kubectl for an API server. Raises AssertionError."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(server.binaries.kubectl.parent), os.environ["PATH"]]),
        "KUBECONFIG": str(server.kubeconfig),
        "KUBECACHEDIR": str(server.folder / "kubectl-cache"),
        "KUBERC": "off",
    }
    command = ["sh", "-euc", commands]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
