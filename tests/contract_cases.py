"""Valid FineTuneJobs that together give every field of the spec, and the manifests made from them by one change."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from finetune_api.crd import Schema, structural_schema
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.values import DECIMAL_PATTERN, URI_PATTERN

Path = tuple[str | int, ...]
Manifest = dict[str, Any]

_COMMON = """
  model: {uri: "file:///models/base"}
  data: {train: {uri: "file:///data/train.jsonl"}}
  output: {uri: "file:///models/tuned"}
"""

# Decimals and quantities stand here as they are written back, so that an answer can be compared to the letter.
VALID_SPECS: dict[str, str] = {
    "minimal": "task: TextClassification\n  strategy: {full: {}}" + _COMMON,
    "everything-of-full": """
  task: TextClassification
  model: {uri: "hf://owner/name", revision: refs/pr/1}
  data:
    train: {uri: "hf://datasets/owner/name", format: JSONL, subset: plain, split: train, revision: 0a1b2c}
    evaluation: {uri: "hf://datasets/owner/name", format: JSONL, subset: plain, split: train, revision: 0a1b2c}
    columns: {text: body, textPair: title, label: queue}
    maxLength: 128
    deduplicate: false
    maxDroppedFraction: "0.1"
    replay:
      source: {uri: "hf://datasets/owner/name", format: JSONL, subset: plain, split: train, revision: 0a1b2c}
      fraction: "0.2"
  strategy: {full: {frozenLayers: 2, layerDecay: "0.9", gradualUnfreezing: {everySteps: 10}, l2ToStart: "0.01"}}
  training:
    epochs: 2
    batchSize: 16
    microBatchSize: 4
    learningRate: "0.0001"
    headLearningRate: "0.001"
    schedule: Cosine
    warmupRatio: "0.1"
    weightDecay: "0.0"
    maxGradNorm: "2.0"
    precision: BF16
    seed: 7
  evaluation:
    metric: macroF1
    everySteps: 10
    batchSize: 8
    earlyStopping: {patience: 3, minDelta: "0.001"}
    retention:
      data: {uri: "hf://datasets/owner/name", format: JSONL, subset: plain, split: train, revision: 0a1b2c}
      maxDrop: "0.05"
      onForgetting: RollBack
  checkpoint: {everySteps: 50, keep: 3}
  output: {uri: "pvc://models/tuned", createClaim: {size: 20Gi, storageClassName: fast.example}}
  resources: {nodes: 2, gpusPerNode: 4, gpuResourceName: amd.com/gpu, cpu: 1500m, memory: 16Gi, sharedMemory: 0.5Gi,
    ephemeralStorage: 200Gi}
  pod:
    nodeSelector: {example.com/zone: a}
    tolerations: [{key: example.com/gpu, operator: Equal, value: "yes", effect: NoSchedule}]
    labels: {team: research}
    envFromSecrets: [{name: HF_TOKEN, secret: hub.token, key: token},
      {name: AWS_ENDPOINT_URL, secret: store, key: endpoint}, {name: AWS_REGION, secret: store, key: region}]
    priorityClassName: high
  queueName: research
  suspend: true
  backoffLimit: 5
  activeDeadlineSeconds: 3600
  ttlSecondsAfterFinished: 0
""",
    "bottleneck": "task: TextClassification\n  strategy:\n"
    '    adapter: {type: Bottleneck, placement: Pfeiffer, reductionFactor: 8, dropout: "0.1", stackOn: '
    '[{uri: "hf://owner/adapter", revision: main}]}' + _COMMON,
    "lora": "task: TextClassification\n  strategy: {adapter: {type: LoRA, rank: 4, alpha: 8, targetModules: [q, v]}}"
    + _COMMON,
    "lora-in-4-bits": "task: TextGeneration\n  strategy: {adapter: {type: DoRA, quantization: NF4}}" + _COMMON,
    "ia3-merged": "task: TextClassification\n  strategy: {adapter: {type: IA3, merge: true}}" + _COMMON,
    "prompt-text": "task: TextClassification\n  strategy:\n"
    "    promptTuning: {type: Prefix, numVirtualTokens: 5, initialization: Text, text: Classify this}" + _COMMON,
    "distillation": """
  task: TextClassification
  strategy:
    distillation:
      teacher: {uri: "hf://owner/teacher", revision: main}
      studentLayers: [0, 2, 4]
      response: {weight: "0.5", temperature: "3.0", divergence: ReverseKL, topK: 16}
      feature: {weight: "0.5", hidden: Cosine, attention: true, layerMap: [{student: 0, teacher: 1}]}
      relation: {weight: "0.5", distance: "0.0", angle: "0.0", layers: "1.0", selfAttention: "1.0"}
      taskWeight: "0.0"
      taskSteps: 100
  model: {uri: "file:///models/base"}
  data:
    train: {uri: "file:///data/train.jsonl"}
    unlabeled: {uri: "hf://datasets/owner/name", format: JSONL, subset: plain, split: train, revision: 0a1b2c}
  resources: {nodes: 2, gpusPerNode: 2}
  output: {uri: "pvc://models/tuned"}
""",
    "empty-objects": """
  task: TextClassification
  strategy: {distillation: {teacher: {uri: "pvc://models/teacher"}, response: {}, feature: {}, relation: {}}}
  training: {}
  evaluation: {earlyStopping: {}, retention: {data: {uri: "file:///old.csv"}}}
  checkpoint: {}
  resources: {}
  pod: {tolerations: [{key: spot}]}
  model: {uri: "file:///models/base"}
  data: {train: {uri: "file:///train.csv"}, columns: {}, replay: {source: {uri: "file:///old.csv"}}}
  output: {uri: "s3://bucket/tuned"}
""",
    "adapter-defaults": "task: TextClassification\n  strategy: {adapter: {}}" + _COMMON,
    "prompt-defaults": "task: TextClassification\n  strategy: {promptTuning: {}}" + _COMMON,
    "auto-defaults": "task: TextClassification\n  strategy: {auto: {}}" + _COMMON,
    "auto": "task: TextClassification\n  strategy: {auto: {prefer: Cost}}\n  training: {maxSteps: 10}" + _COMMON,
    "generation": """
  task: TextGeneration
  model: {uri: "hf://gpt2"}
  data:
    train: {uri: "hf://datasets/imdb"}
    splitFraction: "0.2"
    columns: {text: a, prompt: b, completion: c, messages: d, tools: e, instruction: f, input: g, output: h, system: i}
  evaluation: {metric: perplexity}
  strategy: {full: {}}
  output: {uri: "pvc://models"}
""",
    "token-classification": """
  task: TokenClassification
  model: {uri: "file:///models/base"}
  data: {train: {uri: "file:///data/train.jsonl"}, columns: {tokens: a, tags: b}}
  evaluation: {metric: entityF1}
  strategy: {full: {}}
  output: {uri: "file:///models/tuned"}
""",
    "question-answering": """
  task: QuestionAnswering
  model: {uri: "file:///models/base"}
  data: {train: {uri: "file:///data/train.jsonl"}, columns: {question: a, context: b, answers: c}}
  evaluation: {metric: exactMatch}
  strategy: {full: {}}
  output: {uri: "file:///models/tuned"}
""",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A manifest with one change."""

    name: str
    manifest: Manifest
    field: str
    """JSON path of what was changed."""
    refused: bool | None
    """Whether it must be refused; None where only the agreement of both judges is asked for."""


def valid_job(name: str = "minimal", job_name: str = "job") -> Manifest:
    """One of the valid manifests."""
    text = VALID_SPECS[name]
    spec = yaml.safe_load("spec:\n  " + text.strip("\n").lstrip() + "\n")["spec"]
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": job_name, "namespace": "default"},
        "spec": spec,
    }


def spec_fields() -> dict[str, Schema]:
    """Every field of the spec by its path, items of lists as `[]`."""
    return dict(_fields(structural_schema(FineTuneJobSpec), "spec"))


def _fields(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _fields(child, f"{path}.{name}")
    if "items" in node:
        yield from _fields(node["items"], f"{path}[]")


def values_in(manifest: Manifest) -> dict[Path, Schema]:
    """The schema of every value of the spec that a manifest gives."""
    return dict(_values(manifest["spec"], structural_schema(FineTuneJobSpec), ("spec",)))


def _values(value: Any, node: Schema, path: Path) -> Iterator[tuple[Path, Schema]]:
    yield path, node
    if isinstance(value, dict) and "properties" in node:
        for name, child in value.items():
            yield from _values(child, node["properties"][name], (*path, name))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values(item, node["items"], (*path, index))


def json_path(path: Path) -> str:
    """A path as messages write it: `spec.pod.tolerations[0].key`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def generic(path: Path) -> str:
    """A path with every index as `[]`."""
    return re.sub(r"\[\d+\]", "[]", json_path(path))


def changed(manifest: Manifest, path: Path, value: Any) -> Manifest:
    """A copy of a manifest with another value at a path; `...` removes what is there."""
    copied = copy.deepcopy(manifest)
    node: Any = copied
    for part in path[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) and isinstance(part, str) else node[part]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copied


def value_at(manifest: Manifest, path: Path) -> Any:
    """What stands at a path."""
    node: Any = manifest
    for part in path:
        node = node[part]
    return node


def cases() -> list[Case]:
    """Changes of every field of the spec, each made in the first valid manifest that gives the field."""
    fields: set[str] = set()
    schemas: set[str] = set()
    found: list[Case] = []
    for manifest in map(valid_job, VALID_SPECS):
        for path, node in values_in(manifest).items():
            if generic(path) not in fields:
                found += _cases_of(manifest, path, node, in_brief=_likeness(node) in schemas)
            fields.add(generic(path))
            schemas.add(_likeness(node))
    return [*found, *_rule_cases(), *_metadata_cases()]


def _likeness(node: Schema) -> str:
    """The same for fields with the same bounds."""
    return json.dumps({key: node[key] for key in sorted(node) if key not in ("description", "default")})


def _cases_of(manifest: Manifest, path: Path, node: Schema, in_brief: bool) -> Iterator[Case]:
    field, value = json_path(path), value_at(manifest, path)
    wrong, doubtful = _wrong(node, value), _doubtful(node, value)
    if in_brief:
        wrong, doubtful = [wrong[0], wrong[-1]], []
    for refused, values in ((True, wrong), (None, doubtful)):
        for number, other in enumerate(values):
            yield Case(f"{field}-{number}-{str(other)[:20]!a}", changed(manifest, path, other), field, refused)
    if "properties" in node:
        for unknown in ("bogus", None):
            yield Case(
                f"{field}-unknown-{unknown}", changed(manifest, (*path, "bogus"), unknown), f"{field}.bogus", True
            )
        for name in node.get("required", ()):
            yield Case(f"{field}-without-{name}", changed(manifest, (*path, name), ...), f"{field}.{name}", True)
            yield Case(f"{field}-null-{name}", changed(manifest, (*path, name), None), f"{field}.{name}", True)


def _wrong(node: Schema, value: Any) -> list[Any]:
    """Values that must be refused."""
    if "enum" in node:
        return ["Wrong", "", value.swapcase(), 5, True, [], {}]
    if "x-kubernetes-int-or-string" in node:
        return ["", "0", "0.0Gi", "-1", 0, -1, 1.5, "16GB", "1e3", " 1", "1\n", "1" * 25, 10**20, True, [], {}]
    match node["type"]:
        case "integer":
            bounds = [node["minimum"] - 1, node["maximum"] + 1]
            return [*bounds, "1", "", 1.5, True, [], {}, 10**20]
        case "boolean":
            return ["true", "", 1, 0, [], {}]
        case "array":
            first = value[0] if value else {"uri": "file:///x"}
            return ["x", 5, {}, first, [None], [first] * (node["maxItems"] + 1), *([[]] if "minItems" in node else [])]
        case "object" if "additionalProperties" in node:
            many = {f"key-{number}": "x" for number in range(node["maxProperties"] + 1)}
            return ["x", 5, [], {"a b": "x"}, {"": "x"}, {"a" * 64: "x"}, {"a": 5}, {"a": "b c"}, {"a": "x" * 64}, many]
        case "object":
            return ["x", 5, True, []]
    return _wrong_text(node)


def _wrong_text(node: Schema) -> list[Any]:
    other_types: list[Any] = [5, 1.5, True, [], {}]
    match node.get("pattern"):
        case p if p == DECIMAL_PATTERN:
            return [*_NO_DECIMALS, 0.1, *other_types]
        case p if p == URI_PATTERN:
            return [*_NO_URIS, *other_types]
    return [*([""] if "minLength" in node else []), "x" * (node["maxLength"] + 1), *other_types]


_NO_DECIMALS = (
    "", "abc", "nan", "inf", "-inf", "Infinity", "1e400", "-1e999", ".5", "1.", " 1", "1\n", "0x1", "1_0", "1,5",
    "\u0661", "0." + "1" * 24,
)  # fmt: skip
_NO_URIS = (
    "", "x", "/x", "ftp://a/b", "HF://a/b", "file://", "file:///a b", "file:///a\n", "file:///a\t", "file:///a?b",
    "pvc:///x", "pvc://A/x", "hf://a/b/c", "hf://", "hf://a//b", "hf://datasets/", "s3:///x", "https:///x",
    "https://user:word@host/x", "pvc://a/../b", "file:///..", "file://../x", "s3://bucket/a/..",
    "file:///" + "x" * 1017,
)  # fmt: skip


def _doubtful(node: Schema, value: Any) -> list[Any]:
    """Values that are right in some places and wrong in others: both judges must say the same."""
    if node.get("pattern") == DECIMAL_PATTERN:
        return [None, "-1", "0", "-0", "0.0", "1", "1.0", "1.0000001", "2", "+0.5", "007", "1e-400", "5E-1", "1e308"]
    if node.get("pattern") == URI_PATTERN:
        return [None, *_SOME_URIS]
    if "x-kubernetes-int-or-string" in node:
        return [None, 1, 2.0, "1", "0.1", "00.10", "1.0m", "5Pi", "5Ei", "+1", "1" * 24]
    if "enum" in node:
        return [None, *node["enum"]]
    match node["type"]:
        case "integer":
            return [None, node["minimum"], node["maximum"], 0, 1]
        case "boolean":
            return [None, True, False]
        case "array":
            return [None, [], [value[0]] if value else [], [value[0]] * 2 if value else []]
        case "object":
            return [None, {}, {"x": None}, {"a.b/c": "x"}, {"a..b/c": "x"}, {"a/b/c": "x"}, {"A": ""}, {"a\n": "x"}]
    return [None, *_SOME_WORDS, "é" * node["maxLength"], "a" * node["maxLength"], "a" * 64]


_SOME_URIS = (
    "hf://a", "hf://a/b", "hf://datasets/a", "hf://datasets/a/b", "pvc://a", "pvc://a.b/c", "pvc://a//b",
    "s3://bucket/x", "https://h/x", "file://x", "file:///a..b/..c", "file:///é\u00a0", "file:///😀",
)  # fmt: skip
_SOME_WORDS = (
    "a", "A", "0", "a b", "-a", "a-", "a.b", "a..b", "a/b", "a/../b", "a_b", "é", "😀", "a\n", "\n", "\0", "\u2028",
)  # fmt: skip


_OWNER = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "1a2b"}
# Both judges must say the same of these, too; of a wrong type or time the API server does not name the field.
_METADATA: list[tuple[str, Any]] = [
    *(
        ("creationTimestamp", moment)
        for moment in (
            None, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5+02:00", "yesterday", "", 5, "2026-01-01",
            "2026-01-01T00:00:00", "2026-01-01 00:00:00Z", "2026-01-01T00:00Z", "2026-01-01t00:00:00z",
            "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z",
        )
    ),
    *(("annotations", {key: "x"}) for key in ("A_b", "Ex.com/b", "a/b/c", "é", "a" * 63, f"{'a' * 63}.b/{'c' * 63}")),
    *(("annotations", {"a": value}) for value in (None, "", "x y\n", "é" * (2**17 - 1), "x" * (2**18 - 1))),
    *(("generateName", name) for name in (None, "", "a", "a-", "a--", "a.b", "1-")),
    *(("finalizers", names) for names in ([], ["a"], ["example.com/a"], ["a.b/c/d"], [""])),
    *(("ownerReferences", [owner]) for owner in (_OWNER, _OWNER | {"controller": True, "blockOwnerDeletion": False})),
    ("ownerReferences", [_OWNER | {"controller": "yes"}]),
    *(("deletionTimestamp", moment) for moment in ("2026-01-01T00:00:00Z", "x")),
    *(("deletionGracePeriodSeconds", seconds) for seconds in (5, "5")),
    *(("generation", number) for number in (1, 3.0, 1.5, "1")),
    *((field, value) for field in ("uid", "resourceVersion", "selfLink", "generateName") for value in ("x", "", 5)),
    *((field, value) for field in ("labels", "annotations") for value in (5, [], "", {"a": 5})),
    *((field, value) for field in ("finalizers", "ownerReferences", "managedFields") for value in ([], {}, "x", [5])),
]  # fmt: skip

# Against each rule across fields: the valid manifest, the field that the refusal names, and the change.
_RULE_BREAKERS: list[tuple[str, str, Path, Any]] = [
    ("minimal", "spec.data.unlabeled", ("spec", "data", "unlabeled"), {"uri": "file:///more.jsonl"}),
    ("minimal", "spec.model.revision", ("spec", "model", "revision"), "main"),
    ("minimal", "spec.model.uri", ("spec", "model", "uri"), "hf://datasets/owner/name"),
    ("minimal", "spec.model.uri", ("spec", "model", "uri"), "https://host/model"),
    ("minimal", "spec.data.train", ("spec", "data", "train", "split"), "train"),
    ("minimal", "spec.data.train.uri", ("spec", "data", "train", "uri"), "hf://owner/name"),
    ("everything-of-full", "spec.data.splitFraction", ("spec", "data", "splitFraction"), "0.5"),
    ("minimal", "spec.output.uri", ("spec", "output", "uri"), "hf://owner/name"),
    ("minimal", "spec.output.createClaim", ("spec", "output", "createClaim"), {"size": "1Gi"}),
    ("minimal", "spec.output.uri", ("spec", "resources"), {"nodes": 2}),
    ("minimal", "spec.strategy", ("spec", "strategy"), {}),
    ("minimal", "spec.strategy", ("spec", "strategy", "auto"), {}),
    ("lora", "spec.strategy.adapter", ("spec", "strategy", "adapter", "placement"), "Houlsby"),
    ("lora", "spec.strategy.adapter", ("spec", "strategy", "adapter", "reductionFactor"), 2),
    ("lora", "spec.strategy.adapter", ("spec", "strategy", "adapter", "type"), "IA3"),
    ("lora", "spec.strategy.adapter", ("spec", "strategy", "adapter", "type"), ...),
    ("bottleneck", "spec.strategy.adapter", ("spec", "strategy", "adapter", "rank"), 2),
    ("minimal", "spec.strategy.adapter.dropout", ("spec", "strategy"), {"adapter": {"type": "IA3", "dropout": "0.1"}}),
    ("bottleneck", "spec.strategy.adapter.merge", ("spec", "strategy", "adapter", "merge"), True),
    (
        "minimal", "spec.strategy.adapter.merge", ("spec", "strategy"),
        {"adapter": {"type": "LoRA", "merge": True, "stackOn": [{"uri": "pvc://a/b"}]}},
    ),
    *(
        ("minimal", "spec.strategy.adapter.quantization", ("spec", "strategy"),
         {"adapter": given | {"quantization": "NF4"}})
        for given in (
            {}, {"type": "IA3"}, {"type": "LoRA", "merge": True}, {"type": "LoRA", "stackOn": [{"uri": "pvc://a/b"}]},
        )
    ),
    ("lora", "spec.strategy.adapter.quantization", ("spec", "strategy", "adapter", "quantization"), "INT8"),
    ("prompt-text", "spec.strategy.promptTuning.text", ("spec", "strategy", "promptTuning", "text"), ...),
    ("prompt-defaults", "spec.strategy.promptTuning.text", ("spec", "strategy", "promptTuning", "text"), "x"),
    *(
        (name, "spec.strategy.promptTuning.initialization", ("spec", "strategy"),
         {"promptTuning": {"initialization": "Labels"}})
        for name in ("generation", "question-answering")
    ),
    (
        "distillation", "spec.strategy.distillation", ("spec", "strategy", "distillation"),
        {"teacher": {"uri": "pvc://a/b"}},
    ),
    (
        "distillation", "spec.strategy.distillation.taskWeight", ("spec", "strategy", "distillation"),
        {"teacher": {"uri": "pvc://a/b"}, "feature": {}, "taskWeight": "0"},
    ),
    (
        "distillation", "spec.strategy.distillation.relation", ("spec", "strategy", "distillation", "relation"),
        {"distance": "0", "angle": "0.0"},
    ),
    (
        "distillation", "spec.strategy.distillation.feature.layerMap",
        ("spec", "strategy", "distillation", "feature", "layerMap"),
        [{"student": 0, "teacher": 1}, {"student": 0, "teacher": 2}],
    ),
    ("distillation", "spec.strategy.distillation.studentLayers",
     ("spec", "strategy", "distillation", "studentLayers"), [0, 1, 0]),
    ("distillation", "spec.strategy.distillation.taskSteps", ("spec", "training"), {"maxSteps": 100}),
    ("empty-objects", "spec.training.microBatchSize", ("spec", "training"), {"microBatchSize": 31}),
    ("empty-objects", "spec.resources", ("spec", "resources"), {"gpusPerNode": 2}),
    ("empty-objects", "spec.resources", ("spec", "resources"), {"nodes": 2, "gpusPerNode": 0}),
    ("auto", "spec.training.maxSteps", ("spec", "training", "epochs"), 1),
    ("auto", "spec.training.learningRate", ("spec", "training", "learningRate"), "1e-4"),
    ("minimal", "spec.training.microBatchSize", ("spec", "training", "microBatchSize"), 33),
    ("everything-of-full", "spec.pod.tolerations[0].value",
     ("spec", "pod", "tolerations", 0, "operator"), "Exists"),
    *(
        ("minimal", "spec.pod.labels", ("spec", "pod", "labels"), {label: "other"})
        for label in ("finetune-operator.io/job-name", "app.kubernetes.io/name", "batch.kubernetes.io/job-name",
                      "kueue.x-k8s.io/queue-name", "job-name", "controller-uid", "k8s.io/x")
    ),
    ("minimal", "spec.pod.priorityClassName", ("spec", "pod", "priorityClassName"), "system-node-critical"),
    ("minimal", "spec.pod.envFromSecrets", ("spec", "pod", "envFromSecrets"),
     [{"name": "A_KEY", "secret": "a", "key": "a"}, {"name": "A_KEY", "secret": "b", "key": "b"}]),
    *(
        ("minimal", "spec.pod.envFromSecrets[0].name", ("spec", "pod", "envFromSecrets"),
         [{"name": name, "secret": "a", "key": "a"}])
        for name in ("LD_PRELOAD", "PYTHONPATH", "HOME", "HF_ENDPOINT", "MASTER_ADDR", "JOB_COMPLETION_INDEX", "_KEYS",
                     "AWS_CONFIG_FILE", "AWS_ENDPOINT_URL_STS", "AWS_REGION_X", "X_AWS_REGION", "AWS_CA_BUNDLE")
    ),
    ("lora", "spec.strategy.adapter.targetModules", ("spec", "strategy", "adapter", "targetModules"), ["q", "q"]),
    *(
        (name, "spec.data.columns", ("spec", "data", "columns", column), "x")
        for name, column in (("minimal", "tags"), ("generation", "label"), ("token-classification", "text"),
                             ("question-answering", "text"))
    ),
    *(
        (name, "spec.evaluation.metric", ("spec", "evaluation", "metric"), metric)
        for name, metric in (("minimal", "f1"), ("generation", "accuracy"), ("token-classification", "f1"),
                             ("question-answering", "accuracy"))
    ),
    ("minimal", "metadata.name", ("metadata", "name"), "a" * 51),
    ("minimal", "metadata.name", ("metadata", "name"), "a.b"),
    ("minimal", "metadata.name", ("metadata", "name"), "1a"),
    ("minimal", "metadata.name", ("metadata", "name"), "A"),
    *(
        ("minimal", f"metadata.{field}", ("metadata", field), value)
        for field, value in (
            ("namespce", "research"), ("lables", {}), ("bogus", None), ("clusterName", "x"),
            ("labels", {"a b": "x"}), ("labels", {"a": "x y"}), ("finalizers", ["a b"]), ("finalizers", [None]),
            ("annotations", {"a b": "x"}), ("annotations", {"": "x"}), ("annotations", {"a" * 64: "x"}),
            ("annotations", {"a": "x" * 2**18}), ("annotations", {"a": "é" * 2**17}),
            ("generateName", "A"), ("generateName", "a..b"), ("generateName", "-"),
        )
    ),
    *(
        ("minimal", "metadata.ownerReferences", ("metadata", "ownerReferences"), [changed(_OWNER, (field,), value)])
        for field, value in (("uid", ...), ("kind", ""), ("name", ""), ("bogus", 1), ("apiVersion", "a/b/c"))
    ),
    ("minimal", "kind", ("kind",), "FinetuneJob"),
    ("minimal", "spec", ("spec",), ...),
    ("minimal", "bogus", ("bogus",), {}),
]  # fmt: skip


def _rule_cases() -> list[Case]:
    return [
        Case(f"rule-{number}-{field}", changed(valid_job(name), path, value), field, True)
        for number, (name, field, path, value) in enumerate(_RULE_BREAKERS)
    ]


def _metadata_cases() -> list[Case]:
    return [
        Case(f"metadata-{number}-{field}", changed(valid_job(), ("metadata", field), value), f"metadata.{field}", None)
        for number, (field, value) in enumerate(_METADATA)
    ]
