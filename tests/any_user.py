"""Runs programs as a user that the machine knows nothing of, as OpenShift does: no name, no home, the root group."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

USER = 1_000_660_000
# The interpreter may lie in a home that others cannot read; writing takes the user's own rights.
_CAPABILITIES = "-all,+dac_read_search"


def as_any_user(command: list[str]) -> list[str]:
    """The command, run as that user; skip where none can be taken on."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user: needs root, and setpriv of util-linux")
    who = [f"--reuid={USER}", "--regid=0", "--clear-groups"]
    may = [f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}"]
    return ["setpriv", *who, *may, *command]


@contextmanager
def folder_of_any_user() -> Iterator[Path]:
    """A folder that the user may write to; pytest's own lie where nobody else comes."""
    with TemporaryDirectory(prefix="any-user-") as name:
        os.chown(name, USER, 0)
        yield Path(name)
