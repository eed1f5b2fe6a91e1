"""The API server's HTTP API in plain dicts, for the tests."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

from .apiserver import ApiServer

Object = dict[str, Any]
Found = TypeVar("Found")

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


class RequestError(RuntimeError):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """Requests as one user; each on a connection of its own, so that threads can share it."""

    def __init__(self, server: ApiServer, token: str | None = None) -> None:
        self._address = server.url.removeprefix("https://")
        self._token = token or server.token
        self._context = ssl.create_default_context(cafile=server.ca_file)

    def send(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        """Send a request; raises RequestError."""
        connection = http.client.HTTPSConnection(self._address, timeout=30, context=self._context)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        with closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        answer: Object = json.loads(data)
        if response.status >= 300:
            raise RequestError(response.status, str(answer.get("message")))
        return answer

    def get(self, path: str) -> Object:
        """Read an object; raises RequestError."""
        return self.send("GET", path)

    def find(self, path: str) -> Object | None:
        """Read an object that may not be there."""
        try:
            return self.get(path)
        except RequestError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
        return None

    def items(self, path: str) -> list[Object]:
        """Every object of a list."""
        listed: list[Object] = self.get(path)["items"]
        return listed

    def create(self, path: str, body: Object) -> Object:
        """Create an object."""
        return self.send("POST", path, body)

    def patch(self, path: str, body: Object, kind: str = MERGE_PATCH) -> Object:
        """Change some fields."""
        return self.send("PATCH", path, body, kind)

    def delete(self, path: str, options: Object | None = None) -> None:
        """Delete an object; one that is not there is as good as deleted."""
        try:
            self.send("DELETE", path, options)
        except RequestError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise


def eventually(check: Callable[[], Found | None], what: str, seconds: float = 20.0) -> Found:
    """What `check` returns as soon as that is true; AssertionError that says what it was when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}; now {found!r}"
        time.sleep(0.1)
