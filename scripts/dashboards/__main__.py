"""Writes the dashboards' JSON into a folder: `make generate` writes the chart's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet import fleet_dashboard
from dashboards.job import job_dashboard


def main(folder: Path) -> None:
    """Write each dashboard as NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dashboard in (("fleet", fleet_dashboard()), ("job", job_dashboard())):
        text = json.dumps(dashboard, cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
