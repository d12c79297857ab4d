"""The finished model: a folder that transformers and sentence-transformers load as it is."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evaluator.cross_encoder import quiet_loading
from trainer.specs import TrainSpec


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    spec: TrainSpec,
    summary: dict,
) -> None:
    """Writes fp32 weights, configuration, tokenizer and a model card.

    `CrossEncoder(folder).predict` gives raw logits, as `AutoModelForSequenceClassification` does:
    without the key that is set here sentence-transformers puts one-logit scores through a
    sigmoid, which saturates and ties them.
    """
    model.config.sentence_transformers = {
        "activation_fn": f"{torch.nn.Identity.__module__}.{torch.nn.Identity.__qualname__}"
    }
    with quiet_loading():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(spec, summary), encoding="utf-8")


def model_card(spec: TrainSpec, summary: dict) -> str:
    """What was trained, on what, how, and how its checkpoint was chosen, as a hub model card."""
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
        "objective": spec.objective.name,
        "training collection": spec.collection.name,
        "teacher": f"{spec.teacher.signal} from {spec.teacher.source.type}",
        "seed": spec.seed,
        "queries seen": summary["steps"] * optimisation.batch_queries,
        "pairs seen": summary["pairs"],
        "learning rate": f"{optimisation.lr:g}, {optimisation.schedule}",
        "lengths": f"{spec.query_tokens} query tokens, {spec.document_tokens} document tokens",
        "precision": optimisation.precision,
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
            "\n## All settings\n```json",
            json.dumps(_without_places(spec.model_dump(mode="json", exclude_none=True)), indent=1),
            "```\n",
        ]
    )


def _without_places(settings: Any) -> Any:
    """Settings without the folders of this machine, which are nobody else's business."""
    if not isinstance(settings, dict):
        return settings
    places = {"path", "folder", "home"}
    return {key: _without_places(value) for key, value in settings.items() if key not in places}
