"""Reports progress to the operator over HTTPS, from a thread of its own: it never blocks training and never fails it.

The environment variables are Kubeflow Trainer's, which transformers' own callback reads too:
KUBEFLOW_TRAINER_SERVER_URL, KUBEFLOW_TRAINER_SERVER_CA_CERT, KUBEFLOW_TRAINER_SERVER_TOKEN.
"""

from __future__ import annotations

import http.client
import logging
import os
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.trainer_status import report_of
from finetune_api.v1alpha1.status import Progress

INTERVAL_SECONDS = 5.0
_TIMEOUT_SECONDS = 5.0
_PREFIX = "KUBEFLOW_TRAINER_SERVER_"

logger = logging.getLogger(__name__)


class Reporter:
    """Posts the newest progress at most every five seconds, and once more at the end."""

    def __init__(self, url: str, ca_file: str | None, token_file: str, interval: float = INTERVAL_SECONDS) -> None:
        if not url.startswith("https://"):
            raise ValueError(f"{_PREFIX}URL must be https://, because a token is sent to it")
        self._url = url
        self._token_file = Path(token_file)
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
        self._server = urllib.request.build_opener(tls, _NoRedirects)
        self._interval = interval
        self._newest: Progress | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress-reporter", daemon=True)
        self._thread.start()

    def update(self, progress: Progress) -> None:
        """Note the newest progress; the thread will post it."""
        self._newest = progress
        self._changed.set()

    def close(self) -> None:
        """Post what is not posted yet, within a few seconds."""
        self._closing.set()
        self._changed.set()
        self._thread.join(2 * _TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            if self._newest is not None:
                self._post(self._newest)
            self._closing.wait(self._interval)
        if self._changed.is_set() and self._newest is not None:
            self._post(self._newest)

    def _post(self, progress: Progress) -> None:
        try:
            # The kubelet renews the token in its file, so it is read each time.
            token = self._token_file.read_text(encoding="utf-8").strip()
            request = urllib.request.Request(  # noqa: S310 - https only, checked above, and no redirects
                self._url,
                data=report_of(progress, datetime.now(UTC)).model_dump_json(by_alias=True, exclude_none=True).encode(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                method="POST",
            )
            with self._server.open(request, timeout=_TIMEOUT_SECONDS):
                pass
        except (OSError, http.client.HTTPException) as error:
            logger.debug("the report was not taken: %r", error)
        except ValueError as error:  # its words may quote the token
            logger.debug("the report was not made: %s", type(error).__name__)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for this server and no other."""

    def redirect_request(self, *_: Any) -> None:
        """Take the answer for the error that it then is."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Reporter | None:
    """The reporter that the environment asks for; None without a server, or when it cannot be set up."""
    url, token_file = environment.get(f"{_PREFIX}URL"), environment.get(f"{_PREFIX}TOKEN")
    if not url or not token_file:
        return None
    try:
        return Reporter(url, environment.get(f"{_PREFIX}CA_CERT"), token_file)
    except (OSError, ValueError) as error:
        logger.warning("progress is not reported: %s", error)
        return None
