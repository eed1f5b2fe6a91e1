"""What a job reads and writes: the model, the data, the output."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.values import ColumnName, DnsSubdomain, Fraction, OpenFraction, Quantity, Uri

_REVISION_PART = r"[-A-Za-z0-9_][-A-Za-z0-9._]*"
Revision = Annotated[str, Field(min_length=1, max_length=128, pattern=rf"^{_REVISION_PART}(/{_REVISION_PART})*$")]


class ModelSource(Contract):
    """A pretrained model with its tokenizer: safetensors weights only, and code from a model repository never runs."""

    uri: Uri
    """Where the model is: `hf://owner/name`, `s3://bucket/path`, `pvc://claim/path`, or `file:///path`."""
    revision: Revision | None = None
    """Commit, tag or branch of an hf:// model. Pin a commit so that a job can be repeated."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            message="revision can only be given for an hf:// model",
            holds=lambda self: self.revision is None or self.uri.startswith("hf://"),
            field=".revision",
        ),
        Rule(
            cel="!self.uri.startsWith('hf://datasets/')",
            message="a hub model is written hf://owner/name",
            holds=lambda self: not self.uri.startswith("hf://datasets/"),
            field=".uri",
        ),
        Rule(
            cel="!self.uri.startsWith('https://')",
            message="a model is a directory, and https:// names a single file: use hf://, s3://, pvc:// or file://",
            holds=lambda self: not self.uri.startswith("https://"),
            field=".uri",
        ),
    )


class DataFormat(StrEnum):
    """How a data file is written."""

    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "Parquet"
    CONLL = "CoNLL"
    SQUAD = "SQuAD"


class DataSource(Contract):
    """A file of rows (.jsonl, .csv, .tsv, .parquet, .conll, SQuAD's .json) or a data set of the Hugging Face hub."""

    uri: Uri
    """A file by `pvc://claim/path`, `s3://bucket/path`, `https://host/path` or `file:///path`; `hf://datasets/owner/name`."""
    format: DataFormat | None = None
    """The file's format; by default told by the file's ending."""
    subset: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The configuration of a hub data set (`load_dataset`'s `name`)."""
    split: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The split of a hub data set; `train` by default, `validation` or else `test` for evaluation data."""
    revision: Revision | None = None
    """Commit, tag or branch of a hub data set."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.uri.startsWith('hf://datasets/')"
            " || (!has(self.subset) && !has(self.split) && !has(self.revision))",
            message="subset, split and revision can only be given for an hf://datasets/ source",
            holds=lambda self: (
                self.uri.startswith("hf://datasets/")
                or (self.subset is None and self.split is None and self.revision is None)
            ),
        ),
        Rule(
            cel="!self.uri.startsWith('hf://') || self.uri.startsWith('hf://datasets/')",
            message="a hub data set is written hf://datasets/owner/name",
            holds=lambda self: not self.uri.startswith("hf://") or self.uri.startswith("hf://datasets/"),
            field=".uri",
        ),
    )


class Columns(Contract):
    """Which column of every source holds what. A name left out is the field's own name (`text`, `label`, ...)."""

    text: ColumnName | None = None
    """TextClassification, and TextGeneration on plain text: the text."""
    text_pair: ColumnName | None = None
    """TextClassification of pairs: the second text. Only read when given."""
    label: ColumnName | None = None
    """TextClassification: the label, a string, a whole number or a boolean."""
    prompt: ColumnName | None = None
    """TextGeneration: the prompt, not learnt."""
    completion: ColumnName | None = None
    """TextGeneration: what to answer to the prompt."""
    messages: ColumnName | None = None
    """TextGeneration: chat messages, a list of {role, content} or of ShareGPT's {from, value}, or the JSON of one."""
    tools: ColumnName | None = None
    """TextGeneration: the functions that a chat may call, a list of their JSON schemas or the JSON of one."""
    instruction: ColumnName | None = None
    """TextGeneration on Alpaca's rows: what to do, not learnt."""
    input: ColumnName | None = None
    """TextGeneration on Alpaca's rows: what the instruction is about. May be empty."""
    output: ColumnName | None = None
    """TextGeneration on Alpaca's rows: what to answer to the instruction."""
    system: ColumnName | None = None
    """TextGeneration: what an instruction or a chat without a system message of its own begins with. May be empty."""
    tokens: ColumnName | None = None
    """TokenClassification: a list of words."""
    tags: ColumnName | None = None
    """TokenClassification: a list of tags, as long as tokens."""
    question: ColumnName | None = None
    """QuestionAnswering: the question."""
    context: ColumnName | None = None
    """QuestionAnswering: the text that holds the answer."""
    answers: ColumnName | None = None
    """QuestionAnswering: SQuAD's {text: [...], answer_start: [...]}, empty where unanswerable."""


class Replay(Contract):
    """Rows of earlier data mixed into training against forgetting."""

    source: DataSource
    """The earlier data, in the columns of the training data."""
    fraction: OpenFraction = 0.1
    """Share of each epoch's rows that come from it."""


class DataSpec(Contract):
    """The rows to learn from and the rows to judge by."""

    train: DataSource
    """Rows to train on."""
    evaluation: DataSource | None = None
    """Rows to evaluate on, before and after. Without it a part of `train` is held out."""
    split_fraction: OpenFraction | None = None
    """Share of `train` held out for evaluation when `evaluation` is absent; 0.1 by default."""
    columns: Columns = Field(default_factory=Columns)
    """Which column holds what."""
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] | None = None
    """Longest input in tokens; longer ones are truncated, plain text cut up. By default 512, or the model's limit."""
    deduplicate: bool = True
    """Drop repeated training rows, and those whose text is also in the evaluation or retention data."""
    max_dropped_fraction: Fraction = 0.05
    """The job fails when more than this share of rows is unusable (empty text, no label). Duplicates do not count."""
    unlabeled: DataSource | None = None
    """Rows without labels, for distillation."""
    replay: Replay | None = None
    """Rows of earlier data to mix in against forgetting."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.evaluation) || !has(self.splitFraction)",
            message="give evaluation or splitFraction, not both",
            holds=lambda self: self.evaluation is None or self.split_fraction is None,
            field=".splitFraction",
        ),
    )

    def held_out_fraction(self) -> float:
        """Share of `train` that is held out where there is no `evaluation`."""
        return self.split_fraction or 0.1


class OutputClaim(Contract):
    """A PersistentVolumeClaim to create for the output when it is not there yet. It outlives the job.

    It is ReadWriteOnce, or with several nodes ReadWriteMany, which the storage class must be able to give.
    """

    size: Quantity
    """Requested storage, such as "20Gi"."""
    storage_class_name: DnsSubdomain | None = None
    """Storage class; the cluster's default when absent."""


class OutputSpec(Contract):
    """Where the tuned model goes."""

    uri: Uri
    """A directory that `from_pretrained` will load: `pvc://claim/path`, `s3://bucket/path`, or `file:///path`, which
    only `finetune run` takes. A claim also keeps the checkpoints; with another output they go with the pod."""
    create_claim: OutputClaim | None = None
    """Create the claim of a pvc:// output if it does not exist."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.uri.startsWith('pvc://') || self.uri.startsWith('file://') || self.uri.startsWith('s3://')",
            message="output must be a pvc://, file:// or s3:// URI",
            holds=lambda self: self.uri.startswith(("pvc://", "file://", "s3://")),
            field=".uri",
        ),
        Rule(
            cel="!has(self.createClaim) || self.uri.startsWith('pvc://')",
            message="createClaim can only be given for a pvc:// output",
            holds=lambda self: self.create_claim is None or self.uri.startswith("pvc://"),
            field=".createClaim",
        ),
    )
