"""No code of a model, an adapter or a data set runs: no Python beside the weights, no pickle, no hostile template."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from finetune_api.exit_codes import ExitCode
from security.canaries import Mark, edit_json
from trainer.conftest import unchecked_export  # noqa: F401 - its settings too: few threads, no hub
from trainer.runs import checkpoints, complete, finish, notes, output
from trainer.tiny import FULL, HOULSBY, LORA, make_model, make_run, write_rows

ROOT = Path(__file__).resolve().parents[2]
SHORT: dict[str, Any] = {"num_train": 24, "num_evaluation": 8, "training": {"maxSteps": 2}}
PROMPT: dict[str, Any] = {"promptTuning": {}}
AUTO = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForCausalLM")


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Mark]:
    """Code that must not run."""
    mark = Mark(tmp_path / "executed")
    yield mark
    assert not mark.was_made(), "code ran"


@pytest.fixture
def armed(tmp_path: Path, mark: Mark) -> Path:
    """A model whose repository has code for everything, which its configurations name."""
    return arm(make_model(tmp_path / "armed"), mark)


def arm(directory: Path, mark: Mark) -> Path:
    for name in ("tripwire.py", "custom_generate/generate.py", "setup.py", "__init__.py", "sitecustomize.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(mark.python())
    named = dict.fromkeys(AUTO, "tripwire.Model") | {"AutoConfig": "tripwire.Config"}
    pipelines = {"text-classification": {"impl": "tripwire.Model", "pt": ["AutoModel"]}}
    edit_json(directory / "config.json", auto_map=named, custom_pipelines=pipelines)
    edit_json(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tripwire.Tokenizer"]})
    return directory


def named_in(directory: Path) -> list[str]:
    """The files of an export that speak of its code."""
    return [path.name for path in directory.iterdir() if path.is_file() and b"tripwire" in path.read_bytes()]


@pytest.mark.security(17)
@pytest.mark.parametrize("strategy", [FULL, HOULSBY, LORA, PROMPT], ids=["full", "houlsby", "lora", "prompt"])
def test_code_of_a_model_never_runs_nor_is_it_named_by_what_is_exported(
    tmp_path: Path, armed: Path, strategy: dict[str, Any]
) -> None:
    """Not while it is trained, and not in the process that reloads the export, some of which run code of ours."""
    run = make_run(tmp_path / "run", armed, strategy, **SHORT)
    complete(run)
    assert "tripwire.py" not in [path.name for path in output(run).iterdir()]
    assert named_in(output(run)) == []


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(17)
def test_code_of_a_teacher_never_runs(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model")
    taught = make_run(tmp_path / "teacher", model, FULL, **SHORT)
    complete(taught)
    arm(output(taught), mark)
    strategy = {"distillation": {"teacher": {"uri": f"file://{output(taught)}"}, "response": {}}}
    run = make_run(tmp_path / "run", model, strategy, **SHORT)
    complete(run)
    assert named_in(output(run)) == []


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(17)
@pytest.mark.parametrize("strategy", [LORA, HOULSBY], ids=["lora", "houlsby"])
def test_code_of_an_adapter_and_its_base_never_runs(
    tmp_path: Path, armed: Path, mark: Mark, strategy: dict[str, Any]
) -> None:
    """Of our own adapters too, whose exports carry code for their users: the trainer reads JSON and weights alone."""
    below = make_run(tmp_path / "below", armed, strategy, **SHORT)
    complete(below)
    arm(output(below), mark)
    for path in output(below).glob("modeling_*.py"):
        path.write_text(mark.python())
    (output(below) / "finetune-manifest.json").unlink()
    if (output(below) / "adapter_config.json").exists():
        mapping = {"base_model_class": "Model", "parent_library": "tripwire"}
        edit_json(output(below) / "adapter_config.json", auto_mapping=mapping)
    above = {"adapter": {**strategy["adapter"], "stackOn": [{"uri": f"file://{output(below)}"}]}}
    run = make_run(tmp_path / "run", armed, above, **SHORT)
    complete(run)
    assert named_in(output(run)) == []


@pytest.mark.security(17)
def test_a_model_that_only_its_own_code_can_make_is_refused(tmp_path: Path, armed: Path) -> None:
    edit_json(armed / "config.json", model_type="tripwire")
    termination = finish(make_run(tmp_path / "run", armed, FULL, **SHORT))
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert "needs code of its own, which is never run" in termination.message


@pytest.mark.security(17)
def test_a_chat_template_reaches_nothing_but_the_chat(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model", "llama")
    for template in (
        "{{ cycler.__init__.__globals__.os.open('%s', 65, 438) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{%% for one in [].__class__.__base__.__subclasses__() %%}{{ one('%s', 'w') }}{%% endfor %%}",
        "{%% include '%s' %%}",
    ):
        text = template.replace("%s", str(mark.path)).replace("%%", "%")
        special = {"eos_token": "[SEP]", "chat_template": text}
        edit_json(model / "tokenizer_config.json", **special)
        run = make_run(tmp_path / "run", model, FULL, task="TextGeneration", **SHORT)
        for name in ("train", "evaluation"):
            chats = [
                [{"role": "user", "content": f"{name} {number}"}, {"role": "assistant", "content": "good"}]
                for number in range(8)
            ]
            write_rows(tmp_path / "run" / f"{name}.jsonl", [{"messages": chat} for chat in chats])
        termination = finish(run)
        assert termination.exit_code in (ExitCode.DATA_INVALID, ExitCode.MODEL_INVALID), termination
        assert "template" in termination.message
        assert "subclass" not in termination.message or "unsafe" in termination.message


def torch_file(mark: Mark) -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.ones(1)}, content)
    return content.getvalue() + mark.pickle()


def numpy_file(mark: Mark) -> bytes:
    return b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + mark.pickle()


PICKLES: dict[str, Callable[[Mark], bytes]] = {
    "pytorch_model.bin": Mark.pickle,
    "model.pt": Mark.pickle,
    "model.pth": torch_file,
    "model.ckpt": Mark.pickle,
    "model.pkl": Mark.pickle,
    "model.joblib": Mark.pickle,
    "model.npy": numpy_file,
    "model.safetensors": Mark.pickle,
    "model.safetensors.index.json": Mark.pickle,
}


@pytest.mark.security(18)
def test_the_canary_bites(tmp_path: Path) -> None:
    """Or the tests below could not fail."""
    mark = Mark(tmp_path / "executed")
    for read in (pickle.load, functools.partial(np.load, allow_pickle=True)):
        content = mark.pickle() if read is pickle.load else numpy_file(mark)
        with contextlib.suppress(Exception):
            read(io.BytesIO(content))
        assert mark.was_made()
        mark.path.unlink()


@pytest.mark.security(18)
@pytest.mark.parametrize("name", PICKLES)
def test_pickled_weights_are_refused_unread(tmp_path: Path, mark: Mark, name: str) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(PICKLES[name](mark))
    termination = finish(make_run(tmp_path / "run", model, FULL, **SHORT))
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert "safetensors" in f"{termination.message} {termination.hint}" or name in termination.message


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(18)
def test_pickles_beside_the_weights_are_not_read(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model")
    for name, content in PICKLES.items():
        if not name.startswith("model.safetensors"):
            (model / name).write_bytes(content(mark))
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "adapter_model.bin", "scheduler.pt"):
        (model / name).write_bytes(mark.pickle())
    complete(make_run(tmp_path / "run", model, FULL, **SHORT))


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(18)
def test_a_pickled_adapter_is_refused_unread(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model")
    below = make_run(tmp_path / "below", model, LORA, **SHORT)
    complete(below)
    (output(below) / "finetune-manifest.json").unlink()
    (output(below) / "adapter_model.safetensors").unlink()
    (output(below) / "adapter_model.bin").write_bytes(mark.pickle())
    above = {"adapter": {**LORA["adapter"], "stackOn": [{"uri": f"file://{output(below)}"}]}}
    termination = finish(make_run(tmp_path / "run", model, above, **SHORT))
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert "adapter_model.safetensors" in termination.message


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(18)
def test_pickles_in_checkpoints_are_not_read(tmp_path: Path, mark: Mark) -> None:
    """Whoever can write into the work directory cannot run code in the pod, though he can spoil the run."""
    model = make_model(tmp_path / "model")
    run = make_run(tmp_path / "run", model, FULL, **SHORT)
    complete(run)
    [newest, *_] = checkpoints(run)
    for path in newest.glob("*.safetensors"):
        path.write_bytes(mark.pickle())
    for name in ("optimizer.pt", "state.pkl"):
        (newest / name).write_bytes(mark.pickle())
    complete(run)
    assert any(f"checkpoint {newest.name} is not used" in note for note in notes(run))


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(18)
def test_pickles_among_a_teachers_answers_are_not_read(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model")
    taught = make_run(tmp_path / "teacher", model, FULL, **SHORT)
    complete(taught)
    strategy = {"distillation": {"teacher": {"uri": f"file://{output(taught)}"}, "response": {}}}
    run = make_run(tmp_path / "run", model, strategy, **SHORT)
    complete(run)
    kept = list(Path(run.work_dir).rglob("answers.safetensors"))
    assert kept
    shutil.rmtree(Path(run.work_dir, "checkpoints"))
    for path in kept:
        path.write_bytes(mark.pickle())
        path.with_name("answers.pkl").write_bytes(mark.pickle())
    complete(run)


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(18)
@pytest.mark.parametrize("extension", ["arrow.py_extension_type", "arrow.json", "pandas.period"])
def test_a_parquet_column_of_a_pickled_type_is_not_read(tmp_path: Path, mark: Mark, extension: str) -> None:
    """CVE-2023-47248: pyarrow 14.0.0 and older load what such a column says its type is."""
    model = make_model(tmp_path / "model")
    run = make_run(tmp_path / "run", model, FULL, **SHORT)
    rows = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    metadata = {b"ARROW:extension:name": extension.encode(), b"ARROW:extension:metadata": mark.pickle()}
    fields = [pa.field("text", pa.string(), metadata=metadata), pa.field("label", pa.string())]
    pandas = {b"pandas": json.dumps({"columns": [{"name": "text", "numpy_type": "object"}]}).encode()}
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata={**pandas, b"canary": mark.pickle()}))
    pq.write_table(table, tmp_path / "run" / "train.parquet")
    data = run.spec.data.model_copy(
        update={"train": run.spec.data.train.model_copy(update={"uri": "file://train.parquet"})}
    )
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"data": data})})
    assert finish(run).exit_code in (ExitCode.COMPLETE, ExitCode.DATA_INVALID)


@pytest.mark.security(18)
def test_a_file_of_pickles_is_no_data(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model")
    for name, format in (("rows.pkl", None), ("rows.npy", None), ("rows.jsonl", None), ("rows.pkl", "Parquet")):
        run = make_run(
            tmp_path / "run", model, FULL, data={"train": {"uri": f"file://{name}", "format": format}}, **SHORT
        )
        (tmp_path / "run" / name).write_bytes(numpy_file(mark) if name.endswith("npy") else mark.pickle())
        assert finish(run).exit_code == ExitCode.DATA_INVALID


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.security(18)
def test_tensors_with_the_mark_of_a_pickle_in_their_metadata_are_only_tensors(tmp_path: Path, mark: Mark) -> None:
    model = make_model(tmp_path / "model")
    from safetensors.torch import load_file

    save_file(
        load_file(model / "model.safetensors"),
        model / "model.safetensors",
        metadata={"format": "pt", "canary": mark.pickle().decode("latin-1")},
    )
    complete(make_run(tmp_path / "run", model, FULL, **SHORT))


# What could run code that comes as data. `torch.load` is among them whatever its arguments: nothing here needs it.
_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "pandas"}
_CALLS = {"eval", "exec", "compile", "__import__", "read_pickle", "unsafe_load", "full_load", "fromfile"}
_CALLS_OF = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("os", "system"), ("os", "popen")}
_SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "_Loader"}


def unsafe_in(source: str) -> list[str]:
    """What in Python source could run code that comes as data, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [(node, alias.name) for alias in names if alias.name.partition(".")[0] in _MODULES]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in _MODULES:
                found.append((node, module))
            case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
                found.append((node, name))
            case ast.Call(func=ast.Attribute(attr=name, value=value)):
                owner = value.id if isinstance(value, ast.Name) else ""
                if name in _CALLS - {"compile", "eval"} or (owner, name) in _CALLS_OF:
                    found.append((node, f"{owner}.{name}"))
                if owner == "yaml" and name in ("load", "load_all") and not _has_safe_loader(node):
                    found.append((node, f"{owner}.{name}"))
            case ast.keyword(arg="trust_remote_code", value=value) if _is_not_false(value):
                found.append((node, "trust_remote_code"))
            case ast.keyword(arg="allow_pickle" | "shell", value=value) if _is_not_false(value):
                found.append((node, str(node.arg)))
            case ast.keyword(arg="weights_only" | "use_safetensors", value=ast.Constant(value=False)):
                found.append((node, str(node.arg)))
    return [f"line {node.lineno}: {what}" for node, what in found]


def _has_safe_loader(call: ast.Call) -> bool:
    loaders = [*call.args[1:], *(keyword.value for keyword in call.keywords if keyword.arg == "Loader")]
    return any(re.split(r"\W", ast.unparse(loader))[-1] in _SAFE_LOADERS for loader in loaders)


def _is_not_false(value: ast.expr) -> bool:
    return not (isinstance(value, ast.Constant) and value.value is False)


@pytest.mark.security(18)
@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "import dill as d", "torch.load(f, weights_only=True)",
        "np.load(f, allow_pickle=True)", "yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)", "eval(text)",
        "exec(text)", "subprocess.run(x, shell=True)", "f(trust_remote_code=flag)", "pd.read_pickle(f)",
        "os.system(x)", "f(weights_only=False)", "yaml.unsafe_load(f)",
    ],
)  # fmt: skip
def test_the_search_finds(line: str) -> None:
    assert unsafe_in(line)


@pytest.mark.security(17, 18)
def test_nothing_of_ours_unpickles_evaluates_or_trusts_remote_code() -> None:
    sources = [path for folder in ("operator", "trainer-image") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    found = {f"{path.relative_to(ROOT)}": unsafe for path in sources if (unsafe := unsafe_in(path.read_text("utf-8")))}
    # The export that carries our own layers is reloaded with our own code: what the model card says to do.
    [own] = found.pop("trainer-image/finetune_trainer/export/reload.py")
    assert own.endswith("trust_remote_code")
    assert not found


@pytest.mark.security(17)
def test_the_trainer_reads_configurations_in_one_place_alone() -> None:
    """And the fresh process that reloads the trainer's own export."""
    trainer = ROOT / "trainer-image" / "finetune_trainer"
    sources = {f"{path.relative_to(trainer)}": path.read_text("utf-8") for path in trainer.rglob("*.py")}
    reading = {name for name, source in sources.items() if "Config.from_pretrained(" in source}
    assert reading == {"model_config.py", "export/reload.py"}


@pytest.mark.security(18)
def test_the_locked_torch_refuses_code_in_pickles() -> None:
    """CVE-2025-32434: up to 2.5.1 `weights_only=True` did not."""
    [version] = re.findall(r"^torch==(\d+)\.(\d+)", (ROOT / "requirements/trainer.txt").read_text(), re.MULTILINE)
    assert tuple(map(int, version)) >= (2, 6)
