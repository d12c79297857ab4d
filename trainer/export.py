"""The finished model: a folder that transformers and sentence-transformers load directly."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xsweep.evaluator.models.cross_encoder import quiet_loading
from xsweep.evaluator.provenance import without_places
from xsweep.trainer.result import writing
from xsweep.trainer.specs import TrainSpec

PACKAGES = ("torch", "transformers", "tokenizers", "deepspeed", "numpy")


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    spec: TrainSpec,
    summary: dict,
    provenance: dict,
) -> None:
    """Writes fp32 weights, configuration, tokenizer and a model card.

    `CrossEncoder(folder).predict` gives raw logits, as `AutoModelForSequenceClassification` does.
    Without the key set here, sentence-transformers applies a sigmoid to one-logit scores, which
    saturates and ties them.
    """
    model.config.sentence_transformers = {
        "activation_fn": f"{torch.nn.Identity.__module__}.{torch.nn.Identity.__qualname__}"
    }
    with quiet_loading(), writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = model_card(spec, summary, provenance)
        (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(spec: TrainSpec, summary: dict, provenance: dict) -> str:
    """Markdown with the model's data, settings, program and figures."""
    parts = [
        "---",
        *([f"base_model: {spec.backbone.id}"] if spec.backbone.id else []),
        "library_name: sentence-transformers",
        "pipeline_tag: text-ranking",
        "tags: [cross-encoder, reranker, xsweep]",
        "---",
        "# Cross-encoder for re-ranking",
        "Scores are raw logits: higher is better, only their order within a query has meaning.",
        "```python\nfrom sentence_transformers import CrossEncoder\n",
        'model = CrossEncoder("path/to/this/folder")',
        'scores = model.predict([("a query", "a document")])\n```',
        "## Training",
        *_table("setting", "value", _training(spec, summary)),
        "\n## Choice of the checkpoint",
        _selection(spec, summary),
        "\n## Measured",
        *_table("figure", "value", _figures(summary)),
        "\n## Environment",
        *_table("item", "value", _environment(provenance)),
        "\n## All settings\n```json",
        json.dumps(without_places(spec.model_dump(mode="json", exclude_none=True)), indent=1),
        "```\n",
    ]
    return "\n".join(parts)


def _table(first: str, second: str, rows: dict[str, object]) -> list[str]:
    head = [f"| {first} | {second} |", "|---|---|"]
    return head + [f"| {name} | {value} |" for name, value in rows.items()]


def _training(spec: TrainSpec, summary: dict) -> dict[str, object]:
    backbone = spec.backbone.id or spec.backbone.package or "a local folder"
    layers = f", first {spec.backbone.layers} layers" if spec.backbone.layers else ""
    terms = (f"{term.weight:g} {term.name}" for term in spec.objective.plus)
    optimisation = spec.optimisation
    return {
        "backbone": backbone + layers,
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
    return (
        f"Step {summary['best_step']} of {summary['steps']}: best {spec.validation.measure} "
        f"({summary['best_validation']:.4f}) on {spec.validation.title}, re-ranking "
        f"the first {spec.validation.depth} candidates."
    )


def _figures(summary: dict) -> dict[str, object]:
    figures = {
        "loss of the last step": f"{summary['final_loss']:.4f}",
        "pairs/s": summary["pairs_per_s"],
        "padding": f"{summary['padding_waste']:.1%} of the token slots",
        "processes": ", then ".join(str(ranks) for _, ranks in summary["ranks"]),
    }
    if halved := summary["halved_budgets"]:
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
