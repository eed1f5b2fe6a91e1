"""The `finetune` commands of the documents fit the command and the samples, in a checkout where nothing was run yet."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from finetune_cli.main import parse
from finetune_cli.placing import place_all

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\s*(\S*/)?finetune (run|validate)\b", re.MULTILINE)
BLOCKS = {
    f"{path.name}, block {number}": found
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, found in enumerate(_BLOCK.findall(path.read_text(encoding="utf-8")))
    if _COMMAND.search(found[1])
}
# Stand-ins for what would take minutes: each writes down what it was called with.
PROGRAM = '#!/bin/sh\nfor word; do printf "%s\\037" "$word"; done >> called\necho >> called\n'
MAKE = "#!/bin/sh\ncase $1 in assets | assets-lm) mkdir -p build/assets ;; *) exit 2 ;; esac\n"
OWN_JOB = ROOT / "manifests/samples/sentiment-full.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh checkout, and beside it the job and the data of a person."""
    for name, text in ((".venv/bin/finetune", PROGRAM), ("bin/make", MAKE)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    (tmp_path / "job.yaml").write_text(OWN_JOB.read_text().replace("pvc://examples", "pvc://tickets"))
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documents_have_commands() -> None:
    assert len(BLOCKS) >= 7


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_to_be_typed_is_taken(block: str, checkout: Path) -> None:
    language, commands = BLOCKS[block]
    assert language in ("sh", "bash")
    path = os.pathsep.join([str(checkout / "bin"), "/usr/bin", "/bin"])
    shell = ["sh", "-euc", commands]
    done = subprocess.run(shell, cwd=checkout, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in (checkout / "called").read_text().splitlines():
        options = parse(line.split("\037")[:-1])
        assert all(manifest.is_file() for manifest in options.manifests)
        if options.command == "run":
            for placed in place_all(options.manifests, dict(options.volume), options.work_dir, options.fresh):
                for _, source in placed.run.spec.sources():
                    placed.run.local_path(source.uri)  # or the claim is not mounted
