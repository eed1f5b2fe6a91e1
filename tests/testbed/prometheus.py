"""A real Prometheus that scrapes the operator: Debian's package `prometheus`, or any that is on the PATH."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .client import eventually
from .needed import cannot_be_had
from .processes import HOST, ServerProcess, free_port

START_SECONDS = 30.0
_INSTALL = "run `make prometheus` as root on Debian, or put prometheus and promtool on the PATH"


def program(name: str) -> str:
    """The path of prometheus or promtool. Without it a test is skipped by name; under CI it fails."""
    found = shutil.which(name)
    if not found:
        cannot_be_had(f"a real Prometheus: {name} is not here; {_INSTALL}")
    return found


def check_metrics(text: str) -> str:
    """What promtool finds wrong with an exposition; empty when nothing."""
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


class Prometheus:
    """A running Prometheus with one target."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{HOST}:{port}/api/v1"

    @classmethod
    @contextmanager
    def scraping(cls, target_port: int, folder: Path, **how: Any) -> Iterator[Prometheus]:
        """Scrape a port's /metrics every second for as long as the with block; `how` goes into its scrape_config."""
        port = free_port()
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [
                {"job_name": "finetune-operator", "static_configs": [{"targets": [f"{HOST}:{target_port}"]}], **how}
            ],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
        command = [
            program("prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
        ]
        process = ServerProcess("prometheus", command, folder)
        with process.running():
            prometheus = cls(port)
            eventually(lambda: prometheus.target_is_up(), f"a scrape; {process.log_tail()}", START_SECONDS)
            yield prometheus

    def target_is_up(self) -> bool:
        """Whether the last scrape of the target was good."""
        try:
            return any(float(sample["value"][1]) == 1 for sample in self.query("up"))
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an instant query returns."""
        url = f"{self._url}/query?{urllib.parse.urlencode({'query': expression})}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as response:
            answer = json.loads(response.read())
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The value of an instant query with one sample."""
        samples = self.query(expression)
        return float(samples[0]["value"][1]) if len(samples) == 1 else None
