"""The finished model: a folder that transformers and sentence-transformers load as it is."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from xsweep.evaluator.models.cross_encoder import quiet_loading
from xsweep.evaluator.provenance import without_places
from xsweep.trainer.checkpoint import writing
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

    `CrossEncoder(folder).predict` gives raw logits, as `AutoModelForSequenceClassification` does:
    without the key that is set here sentence-transformers puts one-logit scores through a
    sigmoid, which saturates and ties them.
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
    """What was trained, on what, how and by which program, and what was measured of it."""
    backbone = spec.backbone.id or spec.backbone.package or "a local folder"
    layers = f", first {spec.backbone.layers} layers" if spec.backbone.layers else ""
    optimisation = spec.optimisation
    if spec.validation:
        selection = (
            f"Step {summary['best_step']} of {summary['steps']}: best {spec.validation.measure} "
            f"({summary['best_validation']:.4f}) on {spec.validation.title}, re-ranking "
            f"the first {spec.validation.depth} candidates."
        )
    else:
        selection = f"The last of {summary['steps']} steps; nothing was selected."
    front_matter = [
        "---",
        *([f"base_model: {spec.backbone.id}"] if spec.backbone.id else []),
        "library_name: sentence-transformers",
        "pipeline_tag: text-ranking",
        "tags: [cross-encoder, reranker, xsweep]",
        "---",
    ]
    rows = {
        "backbone": backbone + layers,
        "objective": _formula(spec),
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
    measured = {
        "loss of the last step": f"{summary['final_loss']:.4f}",
        "pairs/s": summary["pairs_per_s"],
        "padding": f"{summary['padding_waste']:.1%} of the token slots",
        "processes": ", then ".join(str(ranks) for _, ranks in summary["ranks"]),
        **(
            {"deviation": f"micro-batches of {halved[-1][1]} tokens from step {halved[0][0]} on"}
            if (halved := summary["halved_budgets"])
            else {}
        ),
    }
    source = provenance["source"] or {}
    made_by = {
        "xsweep": provenance["xsweep"],
        "commit": f"{source['commit']}{' with changes' if source['dirty'] else ''}"
        if source
        else "an installed package",
        "python": provenance["python"],
        **{
            name: provenance["packages"][name]
            for name in PACKAGES
            if name in provenance["packages"]
        },
        "cpu": provenance["hardware"]["cpu"],
        "gpus": ", ".join(provenance["hardware"]["gpus"]) or "none",
        "started": provenance["started"],
    }
    return "\n".join(
        [
            *front_matter,
            "# Cross-encoder for re-ranking",
            "Scores are raw logits: higher is better, only their order within a query has meaning.",
            "```python\nfrom sentence_transformers import CrossEncoder\n",
            'model = CrossEncoder("path/to/this/folder")',
            'scores = model.predict([("a query", "a document")])\n```',
            "## Training\n| setting | value |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "\n## Choice of the checkpoint",
            selection,
            "\n## Measured\n| figure | value |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in measured.items()),
            "\n## Made by\n| what | which |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in made_by.items()),
            "\n## All settings\n```json",
            json.dumps(without_places(spec.model_dump(mode="json", exclude_none=True)), indent=1),
            "```\n",
        ]
    )


def _formula(spec: TrainSpec) -> str:
    terms = (f"{term.weight:g} {term.name}" for term in spec.objective.plus)
    return " + ".join((spec.objective.name, *terms))


def _stages(stage: dict) -> str:
    this = f"{stage['objective']}, {stage['steps']} steps"
    return f"{_stages(stage['stage_before'])}; {this}" if "stage_before" in stage else this
