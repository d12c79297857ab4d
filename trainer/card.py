"""The card of a model: metadata that the Hugging Face Hub reads, and the same for people."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from xsweep.evaluator.provenance import without_places
from xsweep.evaluator.specs import CollectionSpec, IrdsSpec
from xsweep.trainer.specs import TrainSpec

PACKAGES = ("torch", "transformers", "tokenizers", "deepspeed", "numpy")


@dataclass(frozen=True, kw_only=True)
class Score:
    """The mean of a measure on a test collection."""

    collection: CollectionSpec
    first_stage: str
    depth: int
    """Documents of each query that were re-ranked, the first stage's first ones."""
    measure: str
    value: float
    before: float | None = None
    """The value of the first stage's own order."""

    @property
    def candidates(self) -> str:
        """`BM25, first 100`."""
        return f"{self.first_stage}, first {self.depth}"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A finished training, and what only its publisher knows."""

    spec: TrainSpec
    summary: dict[str, Any]
    provenance: dict[str, Any]
    name: str = "Cross-encoder for re-ranking"
    address: str = "path/to/this/folder"
    """The Hub's name of the repository, or the model's folder."""
    license: str | None = None
    """The Hub's id of a licence, such as `apache-2.0`."""
    languages: tuple[str, ...] = ()
    """ISO codes."""
    scores: tuple[Score, ...] = ()


def model_card(model: Model) -> str:
    """Markdown with the model's test results, data, settings, program and figures."""
    spec, summary = model.spec, model.summary
    parts = [
        f"---\n{metadata(model).to_yaml()}\n---",
        f"# {model.name}",
        "Scores are raw logits: higher is better, only their order within a query has meaning.",
        "```python\nfrom sentence_transformers import CrossEncoder\n",
        f'model = CrossEncoder("{model.address}")',
        'scores = model.predict([("a query", "a document")])\n```',
        *_results(model.scores),
        "## Training",
        *_table("setting", "value", _training(spec, summary)),
        "\n## Choice of the checkpoint",
        _selection(spec, summary),
        "\n## Measured",
        *_table("figure", "value", _figures(summary)),
        "\n## Environment",
        *_table("item", "value", _environment(model.provenance)),
        "\n## All settings\n```json",
        json.dumps(without_places(spec.model_dump(mode="json", exclude_none=True)), indent=1),
        "```\n",
    ]
    return "\n".join(parts)


def metadata(model: Model) -> ModelCardData:
    """The card's metadata; scores become its `model-index`."""
    spec = model.spec
    trained_on = hub_dataset(spec.collection)
    results = [
        EvalResult(
            task_type="text-ranking",
            task_name="Re-ranking",
            dataset_type=hub_dataset(score.collection) or score.collection.name,
            dataset_name=score.collection.name,
            dataset_config=score.candidates,
            metric_type=score.measure.lower(),
            metric_name=score.measure,
            metric_value=round(score.value, 4),
        )
        for score in model.scores
    ]
    return ModelCardData(
        base_model=spec.backbone.id,
        datasets=[trained_on] if trained_on else None,
        language=list(model.languages) or None,
        license=model.license,
        library_name="sentence-transformers",
        pipeline_tag="text-ranking",
        tags=["cross-encoder", "reranker", "xsweep", f"loss:{spec.objective.name}"],
        metrics=list(dict.fromkeys(each.metric_type for each in results)) or None,
        model_name=model.name if results else None,
        eval_results=results or None,
    )


def collective_card(title: str, models: Sequence[Model]) -> str:
    """The card of a repository that has a folder for each of several models."""
    cards = [metadata(model) for model in models]
    together = ModelCardData(
        base_model=_distinct(model.spec.backbone.id for model in models),
        datasets=_distinct(name for card in cards for name in card.datasets or ()),
        language=cards[0].language,
        license=cards[0].license,
        library_name=cards[0].library_name,
        pipeline_tag=cards[0].pipeline_tag,
        tags=_distinct(tag for card in cards for tag in card.tags or ()),
        metrics=_distinct(name for card in cards for name in card.metrics or ()),
    )
    indices = [each for card in cards for each in card.to_dict().get("model-index", ())]
    if indices:
        together["model-index"] = indices
    rows = {f"[{each.name}]({each.name})": _selection(each.spec, each.summary) for each in models}
    example = models[0].name
    parts = [
        f"---\n{together.to_yaml()}\n---",
        f"# {title}",
        f"{len(models)} cross-encoders for re-ranking, each in a folder with a card of its own.",
        "```python\nfrom huggingface_hub import snapshot_download",
        "from sentence_transformers import CrossEncoder\n",
        f'files = snapshot_download("{models[0].address}", allow_patterns="{example}/*")',
        f'model = CrossEncoder(f"{{files}}/{example}")\n```',
        *_table("model", "choice of the checkpoint", rows),
    ]
    return "\n".join(parts) + "\n"


def _distinct(values: Iterable[str | None]) -> list[str] | None:
    return list(dict.fromkeys(filter(None, values))) or None


def model_names(trainings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names of folders by identity: `MiniLM-L6_infonce_s12`, longer where two would be the same.

    `trainings` are labels by identity.
    """
    forms = {}
    for identity, labels in trainings.items():
        plain = {key: re.sub(r"[^\w.-]+", "-", str(value)) for key, value in labels.items()}
        short = "{backbone}_{objective}_s{seed}".format(**plain)
        long = "{backbone}_{objective}_{teacher}_s{seed}".format(**plain)
        forms[identity] = short, long, f"{long}_{identity[:8]}"
    used = Counter(form for short, long, _ in forms.values() for form in (short, long))
    return {
        identity: next(form for form in named if used[form] < 2)
        for identity, named in forms.items()
    }


def hub_dataset(collection: CollectionSpec) -> str | None:
    """The Hub's name of a data set of ir_datasets: `irds/beir_scifact_test`."""
    if not isinstance(collection, IrdsSpec):
        return None
    return f"irds/{collection.id.replace('/', '_')}"


def _results(scores: Sequence[Score]) -> list[str]:
    if not scores:
        return []
    measures = list(dict.fromkeys(score.measure for score in scores))
    rows: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for score in scores:
        if score.before is not None:
            own = f"not re-ranked: {score.candidates}"
            rows[score.collection.name, own][score.measure] = f"{score.before:.4f}"
        rows[score.collection.name, score.candidates][score.measure] = f"{score.value:.4f}"
    cells = [[*row, *(values.get(name, "") for name in measures)] for row, values in rows.items()]
    head = ["test collection", "re-ranked", *measures]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
    return ["## Results", "Means over all queries; queries without results count 0.\n", *lines, ""]


def _table(first: str, second: str, rows: Mapping[str, object]) -> list[str]:
    head = [f"| {first} | {second} |", "|---|---|"]
    return head + [f"| {name} | {value} |" for name, value in rows.items()]


def _training(spec: TrainSpec, summary: dict) -> dict[str, object]:
    backbone = spec.backbone.id or spec.backbone.package or "a local folder"
    layers = f", first {spec.backbone.layers} layers" if spec.backbone.layers else ""
    terms = (f"{term.weight:g} {term.name}" for term in spec.objective.plus)
    optimisation = spec.optimisation
    prompt, lora = spec.backbone.prompt, optimisation.lora
    return {
        "backbone": backbone + layers,
        **({"prompt": f"for the answer {prompt.answers[0]!r}"} if prompt else {}),
        **({"adapters": f"LoRA, rank {lora.rank}, alpha {lora.alpha:g}"} if lora else {}),
        "objective": " + ".join((spec.objective.name, *terms)),
        **({"stage before": _stages(summary["stage_before"])} if spec.continues else {}),
        "training collection": spec.collection.name,
        "teacher": f"{spec.teacher.signal} from {spec.teacher.source.type}",
        "seed": spec.seed,
        "queries seen": summary["steps"] * optimisation.batch_queries,
        "pairs seen": summary["pairs"],
        "learning rate": f"{optimisation.lr:g}, {optimisation.schedule}",
        "lengths": f"{spec.query_tokens} query tokens, {spec.document_tokens} document tokens",
        "precision": optimisation.precision,
    }


def _stages(stage: dict) -> str:
    this = f"{stage['objective']}, {stage['steps']} steps"
    return f"{_stages(stage['stage_before'])}; {this}" if "stage_before" in stage else this


def _selection(spec: TrainSpec, summary: dict) -> str:
    if not spec.validation:
        return f"The last of {summary['steps']} steps; nothing was selected."
    searched = summary.get("search", {}).get("settings", {})
    settings = ", ".join(f"{name} {value}" for name, value in searched.items())
    return (
        f"Step {summary['best_step']} of {summary['steps']}: best {spec.validation.measure} "
        f"({summary['best_validation']:.4f}) on {spec.validation.title}, re-ranking "
        f"the first {spec.validation.depth} candidates. "
        + (f"A search on the same data chose {settings}. " if settings else "")
        + "No test collection chose anything."
    )


def _figures(summary: dict) -> dict[str, object]:
    figures = {
        "loss of the last step": f"{summary['final_loss']:.4f}",
        "pairs/s": summary["pairs_per_s"],
        "padding": f"{summary['padding_waste']:.1%} of the token slots",
        "processes": ", then ".join(str(ranks) for _, ranks in summary.get("ranks", ())),
    }
    if halved := summary.get("halved_budgets"):  # older results have none
        first, last = halved[0][0], halved[-1][1]
        figures["deviation"] = f"micro-batches of {last} tokens from step {first} on"
    return figures


def _environment(provenance: dict) -> dict[str, object]:
    source, packages = provenance["source"], provenance["packages"]
    changes = " with changes" if source and source["dirty"] else ""
    return {
        "xsweep": provenance["xsweep"],
        "commit": f"{source['commit']}{changes}" if source else "an installed package",
        "python": provenance["python"],
        **{name: packages[name] for name in PACKAGES if name in packages},
        "cpu": provenance["hardware"]["cpu"],
        "gpus": ", ".join(provenance["hardware"]["gpus"]) or "none",
        "started": provenance["started"],
    }
