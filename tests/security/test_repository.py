"""The repository itself: sources only, no secret in them, pinned actions, static analysis on, properties tested."""

from __future__ import annotations

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.security(26)

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
LARGEST = 1024 * 1024
# What keys and tokens look like, each by its own mark, so that words such as "token" are none.
SECRETS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*\n\s*[A-Za-z0-9+/=]{40}",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{34,}\b",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{60,}",
    "AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "Google key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}",
    "address with a password": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'{}<>$]{2,}:[^\s/@\"'{}<>$]{6,}@[a-z0-9.-]+\.[a-z]{2,}",
}
ACTION = re.compile(r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_./-]+@[0-9a-f]{40}$")


@cache
def tracked() -> list[Path]:
    """What git has, and what it would have: new files that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    assert len(paths) > 300
    return [path for path in paths if path.exists()]


def secrets_in(text: str) -> list[str]:
    return [name for name, pattern in SECRETS.items() if re.search(pattern, text)]


def test_everything_is_text_of_a_size_that_a_person_can_read() -> None:
    for path in tracked():
        content = path.read_bytes()
        assert b"\0" not in content, path
        content.decode("utf-8")
        assert len(content) <= LARGEST, path
        assert path.resolve().is_relative_to(ROOT), f"{path} is a link out of the repository"


def test_no_secret_is_in_any_file() -> None:
    found = {path: names for path in tracked() if (names := secrets_in(path.read_text("utf-8")))}
    assert not found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("private key", "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "A" * 64),
        ("Hugging Face token", "hf_" + "a1" * 17),
        ("GitHub token", "ghp_" + "a1" * 18),
        ("AWS key", "AKIA" + "A1" * 8),
        ("JSON web token", "eyJ" + "a" * 20 + ".eyJ" + "b" * 20 + "." + "c" * 43),
        ("address with a password", "https://someone:" + "password1@example.com/x"),
    ],
)
def test_the_search_finds(name: str, text: str) -> None:
    assert secrets_in(f"x = '{text}'") == [name]


def test_the_policy_says_where_to_report() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert re.search(r"report", text, re.IGNORECASE)
    assert re.search(r"version", text, re.IGNORECASE)
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_static_analysis_for_security_is_on() -> None:
    """Ruff's S rules are bandit's; `make lint` runs them, and so does CI. What they must not miss, they do not."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in settings["select"]
    off = [rule for rule in settings["ignore"] if re.match(r"S\d", rule)]
    assert set(off) <= {"S311", "S603", "S607"}, "each is explained in pyproject.toml"
    bad = "import pickle\nimport subprocess\npickle.loads(b'')\nsubprocess.run('x', shell=True)\neval('1')\n"
    for folder in ("operator/finetune_operator", "operator/finetune_api", "trainer-image/finetune_trainer"):
        command = ["ruff", "check", "--select=S", "--output-format=concise", f"--stdin-filename={folder}/x.py", "-"]
        done = subprocess.run(
            [str(Path(ROOT, ".venv/bin", command[0])), *command[1:]],
            cwd=ROOT, input=bad, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert {"S301", "S602", "S307"} <= set(re.findall(r"S\d{3}", done.stdout)), folder


def test_every_exception_to_static_analysis_says_its_rule() -> None:
    for path in tracked():
        if path.suffix == ".py":
            bare = re.findall(r"# noqa(?!: [A-Z]+\d+)|# type: ignore(?!\[)", path.read_text("utf-8"))
            assert not bare or path == Path(__file__), path


def test_properties_are_tested_with_generated_values() -> None:
    users = [path for path in tracked() if path.name.startswith("test_") and "@given" in path.read_text("utf-8")]
    assert len(users) >= 5


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.y*ml")), ids=lambda path: path.name)
def test_workflows_pin_their_actions_and_may_only_read(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.load(text, yaml.CSafeLoader)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text
    assert "secrets." not in text
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 180
        for step in job["steps"]:
            if "uses" in step:
                assert ACTION.match(step["uses"]), step["uses"]
                if step["uses"].startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False
            # What an event says, such as a branch's name, must not become a part of a script.
            assert "${{" not in step.get("run", "")
