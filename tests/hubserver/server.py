"""Serves a folder of repositories as the Hugging Face hub does, as far as `huggingface_hub` and `datasets` ask.

The folder holds `models/OWNER/NAME` and `datasets/OWNER/NAME`; `NAME@REVISION` beside it is another revision. A commit
is named by what its files hold. Errors carry the status, headers and words of the real hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[\w.-]+(?:/[\w.-]+)?)(?P<rest>/(?:revision|tree|paths-info)/.*)?"
)
_RESOLVE = re.compile(
    r"/(?:(?P<kind>models|datasets)/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class HubError(Exception):
    """An answer other than 200, in the hub's words."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True)
class Repository:
    """A revision of a repository: a folder."""

    folder: Path
    kind: str
    name: str

    @cached_property
    def files(self) -> dict[str, bytes]:
        """What it holds, by path."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    @cached_property
    def commit(self) -> str:
        """Forty digits that change with the files."""
        content = "".join(f"{path} {_blob_id(content)}\n" for path, content in self.files.items())
        return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()

    def info(self) -> dict[str, Any]:
        """The answer to /api/KIND/NAME."""
        siblings = [{"rfilename": path} for path in self.files]
        return {"_id": self.commit[:24], "id": self.name, "sha": self.commit, "private": False, "gated": False,
                "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """The answer to /api/KIND/NAME/tree/REVISION/FOLDER. Raises HubError."""
        prefix = f"{folder}/" if folder else ""
        below = [path for path in self.files if path.startswith(prefix)]
        if folder and not below:
            raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound")
        folders = {path[: path.index("/", len(prefix))] for path in below if "/" in path[len(prefix) :]}
        direct = [path for path in below if recursive or "/" not in path[len(prefix) :]]
        return [self._folder(path) for path in sorted(folders)] + [self._file(path) for path in direct]

    def paths_info(self, paths: list[str]) -> list[dict[str, Any]]:
        """The answer to /api/KIND/NAME/paths-info/REVISION: those there are, files and folders."""
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in self.files)]
        return [self._file(path) for path in paths if path in self.files] + [self._folder(path) for path in folders]

    def _file(self, path: str) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(self.files[path]), "oid": _blob_id(self.files[path])}

    def _folder(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "size": 0, "oid": _blob_id(path.encode())}


@dataclass
class HubServer:
    """A hub that can be started, stopped and started again on the same port."""

    root: Path
    token: str = "hf_only_for_this_test"
    """The one that is accepted."""
    gated: frozenset[str] = frozenset()
    """Repositories whose files need access granted; `token` has not got it."""
    private: frozenset[str] = frozenset()
    """Repositories that only `token` sees."""
    busy: frozenset[str] = frozenset()
    """Repositories that are answered with 503."""
    requests: list[str] = field(default_factory=list)
    """What was asked for: "GET /api/models/owner/name"."""
    authorizations: set[str] = field(default_factory=set)
    """All Authorization headers that came."""
    _server: _Listener | None = None
    _port: int = 0

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen."""
        self._server = _Listener(("127.0.0.1", self._port), type("Handler", (_Handler,), {"hub": self}))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Hang up, and refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.hang_up()
            self._server.server_close()
            self._server = None

    def downloads(self) -> set[str]:
        """The paths of the files that were fetched whole or in part."""
        gets = [request.partition(" ")[2] for request in self.requests if request.startswith("GET ")]
        return {match["path"] for path in gets if (match := _RESOLVE.fullmatch(path))}

    def find(self, kind: str, name: str, revision: str, authorization: str) -> Repository:
        """A revision of a repository. Raises HubError."""
        if authorization and authorization != f"Bearer {self.token}":
            raise HubError(401, "Invalid credentials in Authorization header")
        if name in self.busy:
            raise HubError(503, "Service Unavailable")
        folder = self.root / kind / name
        if not folder.is_dir() or (name in self.private and not authorization):
            # Whoever is not logged in is not told whether a repository exists.
            if authorization:
                raise HubError(404, "Repository not found", "RepoNotFound")
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        candidates = {"main": Repository(folder, kind, name)}
        for other in folder.parent.glob(f"{folder.name}@*"):
            candidates[other.name.partition("@")[2]] = Repository(other, kind, name)
        for branch, repository in candidates.items():
            if revision in (branch, repository.commit):
                return repository
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, kind: str, name: str, revision: str, path: str, authorization: str) -> tuple[Repository, bytes]:
        """A file's content. Raises HubError."""
        repository = self.find(kind, name, revision, authorization)
        if name in self.gated:
            message = f"Access to {kind.removesuffix('s')} {name} is restricted"
            if authorization:
                raise HubError(403, f"{message} and you are not in the authorized list.", "GatedRepo")
            raise HubError(
                401, f"{message}. You must have access to it and be authenticated to access it.", "GatedRepo"
            )
        if path not in repository.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return repository, repository.files[path]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._connections: list[socket] = []
        super().__init__(*args)

    def get_request(self) -> tuple[socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def hang_up(self) -> None:
        """Cut the connections that clients keep for their next request."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path, authorization = unquote(url.path), self.headers.get("Authorization", "")
        self.hub.requests.append(f"{self.command} {path}")
        if authorization:
            self.hub.authorizations.add(authorization)
        try:
            if match := _RESOLVE.fullmatch(path):
                kind, name, revision, file = match.groups()
                self._send_file(*self.hub.file(kind or "models", name, revision, file, authorization))
            elif match := _API.fullmatch(path):
                kind, name, rest = match.groups()
                self._send_json(self._api(kind, name, rest, parse_qs(url.query), body, authorization))
            else:
                raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            content = json.dumps({"error": error.message}).encode()
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message, "Content-Type": "application/json"}
            self._send(error.status, content, {name: value for name, value in headers.items() if value})

    def _api(
        self, kind: str, name: str, rest: str | None, query: dict[str, Any], body: bytes, authorization: str
    ) -> Any:
        _, call, revision, folder = [*(rest or "/revision/main").split("/", 3), ""][:4]
        repository = self.hub.find(kind, name, revision, authorization)
        if call == "tree":
            return repository.tree(folder, recursive=query.get("recursive", [""])[0].lower() in ("true", "1"))
        if call == "paths-info":
            return repository.paths_info(_paths_of(body, self.headers.get("Content-Type", "")))
        return repository.info()

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repository: Repository, content: bytes) -> None:
        headers = {
            "X-Repo-Commit": repository.commit,
            "ETag": f'"{_blob_id(content)}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not asked:
            return self._send(200, content, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._send(206, content[start : end + 1], headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are recorded."""


def _paths_of(body: bytes, content_type: str) -> list[str]:
    if content_type.startswith("application/json"):
        paths = json.loads(body)["paths"]
        return paths if isinstance(paths, list) else [paths]
    return parse_qs(body.decode()).get("paths", [])


def _blob_id(content: bytes) -> str:
    """The name git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
