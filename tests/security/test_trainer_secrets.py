"""The token of the hub is sent to the hub and is found nowhere else: in no log, record, checkpoint, export or error."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from hubserver.server import HubServer
from trainer import conftest as _settings  # noqa: F401 - few threads, no hub
from trainer.tiny import LORA, make_model, make_rows, make_run, write_rows

pytestmark = pytest.mark.security(19)

TOKEN = "hf_CanaryThatIsNowhere0123"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A hub whose repositories only the token sees."""
    root = tmp_path / "hub"
    make_model(root / "models" / "owner" / "private")
    for split, count, seed in (("train", 40, 1), ("validation", 12, 2)):
        folder = root / "datasets" / "owner" / "private"
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / f"{split}.jsonl", make_rows(count, seed=seed))
    hub = HubServer(root, token=TOKEN, private=frozenset({"owner/private"}), busy=frozenset({"owner/busy"}))
    hub.start()
    yield hub
    hub.stop()


def job(directory: Path, model: str, dataset: str) -> Run:
    data = {"train": {"uri": f"hf://datasets/{dataset}"}, "evaluation": {"uri": f"hf://datasets/{dataset}"}}
    training = {"training": {"maxSteps": 3}, "checkpoint": {"everySteps": 1}}
    run = make_run(directory, directory, LORA, data=data, **training)
    content = json.loads(run.model_dump_json(by_alias=True, exclude_none=True))
    content["spec"]["model"] = {"uri": f"hf://{model}"}
    return Run.model_validate_json(json.dumps(content))


def train(run: Run, directory: Path, hub: HubServer, by_file: bool = False, token: str = TOKEN) -> int:
    """Run the trainer's command with the token, and look for it in everything that it leaves."""
    file, home = directory / "run.json", directory / "home"
    file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    home.mkdir(exist_ok=True)
    secret = directory.parent / "secret"
    secret.write_text(token)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HOME": str(home), "HF_DEBUG": "0"}
    environment |= {"HF_TOKEN_PATH": str(secret)} if by_file else {"HF_TOKEN": token}
    environment |= {
        "PYTHONPATH": ":".join(sys.path), "TERMINATION_MESSAGE_PATH": str(directory / "termination"),
    }  # fmt: skip
    with (directory / "log").open("w") as log:
        command = [sys.executable, "-m", "finetune_trainer", str(file)]
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    assert (directory / "termination").read_text()
    files = [path for path in directory.rglob("*") if path.is_file()]
    forms = [token.encode(), base64.b64encode(token.encode()), token[3:].encode()]
    assert not [path for path in files if any(form in path.read_bytes() for form in forms)]
    return done.returncode


@pytest.mark.parametrize("by_file", [False, True], ids=["variable", "file"])
def test_a_whole_run_leaves_no_trace_of_the_token(tmp_path: Path, hub: HubServer, by_file: bool) -> None:
    """With checkpoints, an export that names its base on the hub, and the process that reloads it."""
    folder = tmp_path / "run"
    run = job(folder, "owner/private", "owner/private")
    assert train(run, folder, hub, by_file) == ExitCode.COMPLETE, (folder / "log").read_text()
    assert hub.authorizations == {f"Bearer {TOKEN}"}
    assert len(list((folder / "out").iterdir())) > 4
    adapter = json.loads((folder / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "owner/private"
    assert list((folder / "work" / "checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("model", "dataset", "token", "code"),
    [
        ("owner/absent", "owner/private", TOKEN, ExitCode.MODEL_INVALID),
        ("owner/busy", "owner/private", TOKEN, ExitCode.NETWORK_UNAVAILABLE),
        ("owner/private", "owner/absent", TOKEN, ExitCode.DATA_INVALID),
        ("owner/private", "owner/private", "hf_CanaryThatIsWrong0123", ExitCode.CREDENTIALS_INVALID),
        ("owner/private", "owner/private", "hf_Canary That 'holds\nwhat no token has", ExitCode.CREDENTIALS_INVALID),
    ],
)  # fmt: skip
def test_no_error_tells_the_token(
    tmp_path: Path, hub: HubServer, model: str, dataset: str, token: str, code: ExitCode
) -> None:
    folder = tmp_path / "run"
    assert train(job(folder, model, dataset), folder, hub, token=token) == code, (folder / "log").read_text()


def test_a_hub_that_hangs_up_does_not_bring_the_token_into_the_log(tmp_path: Path, hub: HubServer) -> None:
    hub.stop()
    folder = tmp_path / "run"
    assert train(job(folder, "owner/private", "owner/private"), folder, hub) == ExitCode.NETWORK_UNAVAILABLE
