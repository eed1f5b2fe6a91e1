"""Runs an S3 server with a bucket and two accounts, and looks at what is in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from testbed.client import eventually
from testbed.processes import HOST, ServerProcess, free_port
from testbed.versitygw import find_versitygw

BUCKET = "models"
START_SECONDS = 30.0


@dataclass(frozen=True)
class Keys:
    """An account's keys."""

    access: str
    secret: str

    def environment(self) -> dict[str, str]:
        """For a client of that account."""
        return {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}


OWNER = Keys("ownerCanaryId0123", "ownerCanarySecret+Nowhere/4567")
"""May do everything."""
STRANGER = Keys("strangerCanaryId01", "strangerCanarySecret+Nowhere/89")
"""Has an account, and no right to the bucket."""


class ObjectStore:
    """A running server with one bucket."""

    def __init__(self, process: ServerProcess, port: int) -> None:
        self._process = process
        self.port = port

    @property
    def endpoint(self) -> str:
        """For AWS_ENDPOINT_URL."""
        return f"http://{HOST}:{self.port}"

    def environment(self, keys: Keys = OWNER) -> dict[str, str]:
        """What a job's secret holds."""
        return {**keys.environment(), "AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "us-east-1"}

    def system(self) -> Any:
        """A client of the owner."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
            return pyarrow.fs.S3FileSystem(
                access_key=OWNER.access, secret_key=OWNER.secret, scheme="http", region="us-east-1",
                endpoint_override=f"{HOST}:{self.port}", allow_bucket_creation=True, allow_delayed_open=True,
            )  # fmt: skip

    def put(self, path: str, content: bytes | str) -> str:
        """Write an object; its URI."""
        with self.system().open_output_stream(f"{BUCKET}/{path}") as sink:
            sink.write(content.encode() if isinstance(content, str) else content)
        return f"s3://{BUCKET}/{path}"

    def put_all(self, path: str, directory: Path) -> str:
        """Write the files of a directory; their URI."""
        for file in directory.iterdir():
            self.put(f"{path}/{file.name}", file.read_bytes())
        return f"s3://{BUCKET}/{path}"

    def contents(self, path: str) -> dict[str, bytes]:
        """All that is below a path."""
        system = self.system()
        selector = pyarrow.fs.FileSelector(f"{BUCKET}/{path}", recursive=True, allow_not_found=True)
        found = [info.path for info in system.get_file_info(selector) if info.type == pyarrow.fs.FileType.File]
        return {each.removeprefix(f"{BUCKET}/{path}/"): system.open_input_file(each).read() for each in found}

    def requests(self) -> list[str]:
        """The server's log of requests."""
        return self._process.log().splitlines()


@contextmanager
def serving(folder: Path) -> Iterator[ObjectStore]:
    """Run a server."""
    for name in ("buckets", "metadata", "accounts"):
        (folder / name).mkdir(parents=True)
    stranger = {"access": STRANGER.access, "secret": STRANGER.secret, "role": "user"}
    (folder / "accounts" / "users.json").write_text(json.dumps({"accessAccounts": {STRANGER.access: stranger}}))
    port = free_port()
    command = [str(find_versitygw()), f"{HOST}:{port}", *(str(folder / name) for name in ("buckets", "metadata"))]
    environment = {"ROOT_ACCESS_KEY": OWNER.access, "ROOT_SECRET_KEY": OWNER.secret, "PATH": os.environ["PATH"]}
    process = ServerProcess("versitygw", [*command, str(folder / "accounts")], folder, environment)
    with process.running():
        eventually(lambda: _listens(port), f"an S3 server; {process.log_tail()}", START_SECONDS)
        store = ObjectStore(process, port)
        store.system().create_dir(BUCKET)
        yield store


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


def use(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Let this process know nothing of object stores but that."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")  # a person's own profiles
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
