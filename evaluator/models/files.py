"""A model's files on this machine, and the uses that they rule out; read without PyTorch."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xsweep.errors import ConfigError
from xsweep.evaluator.specs import UNPADDED_FAMILIES, ModelSpec

Read = Callable[[str], Any]
"""Reads a model's JSON file by its name; None if there is none."""

POOLINGS = ("mean", "cls")
ENCODERS = (*UNPADDED_FAMILIES, "distilbert", "deberta", "deberta-v2")
"""Families that give no next token, by transformers' `model_type`."""
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


def configs(model: Mapping[str, Any]) -> list[Path]:
    """Every `config.json` of a model on this machine, the outermost first."""
    folder = Path(model["folder"]) if model.get("folder") else None
    if package := model.get("package"):
        found = importlib.util.find_spec(package.replace("-", "_"))
        places = list(found.submodule_search_locations or ()) if found else []
        folder = Path(places[0]) if places else None
    if name := model.get("id"):
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
        repository, revision = hub / f"models--{name.replace('/', '--')}", model.get("revision")
        ref = repository / "refs" / (revision or "main")
        folder = repository / "snapshots" / (ref.read_text() if ref.is_file() else revision or "")
    return sorted(folder.rglob("config.json"), key=lambda path: len(path.parts)) if folder else []


def refusal(
    model: ModelSpec, use: str, layout: str = "auto", targets: Sequence[str] | None = None
) -> tuple[str, str] | None:
    """The setting that a model's files rule out, and the reason; None if nothing is known.

    `use` is `backbone`, the type of a teacher or that of a first stage. `targets` are those of
    `lora`, None without it. The setting is `lora`, `layout`, a key of the model's block, or "" for
    the model itself.
    """
    folder = next((path.parent for path in configs(model.model_dump())), Path("/nowhere"))
    config = _read_json(folder, "config.json") or {}
    family, name = config.get("model_type"), model.id or model.package or model.folder
    if not family:
        return None
    this, read = f"{name} is a {family} model", partial(_read_json, folder)
    is_encoder = family in ENCODERS and not config.get("is_decoder")
    runs_unpadded = is_encoder and family in UNPADDED_FAMILIES
    if "lsh" in (config.get("attn_layers") or ()):
        return "", f"{this}, which hashes long inputs at random: name another model"
    layers = next((config[key] for key in _LAYERS if config.get(key)), None)
    if model.layers and layers and model.layers > layers:
        return "layers", f"layers is {model.layers}, {name} has {layers}: lower it"
    if model.prompt and (is_encoder or config.get("is_encoder_decoder")):
        return "prompt", f"prompt is for decoders, {this}: leave it out"
    if layout == "unpadded" and not runs_unpadded:
        return "layout", f"layout is unpadded, {this}, which runs padded only: leave layout out"
    if targets is not None and runs_unpadded:
        return "lora", f"lora is for decoders, {this}: leave it out, or give it in `overrides`"
    if targets and (known := _layers_besides(folder, targets)):
        return "lora", f"{name} has no layer {' or '.join(targets)}: known are {', '.join(known)}"
    if use in ("causal_reranker", "listwise_llm") and is_encoder:
        return "", f"{this}, which gives no next token: a {use} needs a decoder"
    if use == "listwise_llm":
        chats = "chat_template" in (read("tokenizer_config.json") or {"chat_template": ""})
        if not chats and not any(folder.glob("chat_template*")):
            return "", f"{name} is no chat model, its tokenizer has no chat template: name another"
    if use == "cross_encoder":
        kinds, outputs = config.get("architectures"), config.get("id2label") or [""]
        if kinds and not any("SequenceClassification" in kind for kind in kinds):
            return "", f"{name} is a {kinds[0]}, without a cross_encoder's head: set another type"
        if len(outputs) > 1:
            return "", f"{name} has {len(outputs)} outputs, a cross_encoder has one: name another"
    try:
        if use in ("bi_encoder", "dense"):
            pooling(str(name), read)
        elif use == "splade":
            check_sparse(str(name), read)
    except ConfigError as problem:
        return "", str(problem)
    return None


def _layers_besides(folder: Path, targets: Sequence[str]) -> list[str]:
    """Names of layers, last parts only; empty if a target is among them or none are known."""
    from safetensors import safe_open

    names = list((_read_json(folder, "model.safetensors.index.json") or {}).get("weight_map", ()))
    if not names and (file := folder / "model.safetensors").is_file():
        with safe_open(file, "np") as weights:
            names = list(weights.keys())
    layers = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    if any(f".{layer}".endswith(f".{target}") for layer in layers for target in targets):
        return []
    return sorted({layer.rpartition(".")[2] for layer in layers})


def _read_json(folder: Path, name: str) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return None


def pooling(where: str, read: Read) -> str:
    """A bi-encoder's pooling. Raises ConfigError for modules that are not supported here."""
    modules = read("modules.json")
    if modules is None:
        return "mean"
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise ConfigError(f"{where}: bi-encoders with a module {min(unknown)} are not supported")
    settings = read(f"{kinds['Pooling']}/config.json") or {}
    modes = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, on in settings.items()
        if key.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(f"{where}: pooling {modes} is not supported, only mean or cls")
    return modes[0]


def check_sparse(where: str, read: Read) -> None:
    """Raises ConfigError for a sparse encoder's modules that are not supported here."""
    for module in read("modules.json") or ():
        kind = module["type"].rsplit(".", 1)[-1]
        pool = read(f"{module['path']}/config.json") if kind == "SpladePooling" else None
        settings = pool or {}
        ours = settings.get("pooling_strategy", "max"), settings.get("activation_function")
        known = kind in ("MLMTransformer", "Transformer", "SpladePooling")
        if not known or ours not in (("max", None), ("max", "relu")):
            raise ConfigError(
                f"{where}: a sparse encoder with {kind} {settings or ''} is not supported, "
                "only a masked language model with max pooling over log(1 + relu)"
            )
