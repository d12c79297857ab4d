"""The forward passes of a batch, which an engine wraps and differentiates."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from transformers import PreTrainedModel

from xsweep.errors import ConfigError
from xsweep.evaluator.models.cross_encoder import quiet_loading, same_scores
from xsweep.evaluator.pairs import PairEncoder
from xsweep.evaluator.varlen.attention import KERNELS, Packing, pack
from xsweep.evaluator.varlen.encoders import build_scorer
from xsweep.trainer.cpu_kernels import TrainingKernels

Inputs = dict[str, Tensor] | Packing
"""Model inputs of one forward pass: padded, or packed in families that support it."""
Item = TypeVar("Item")


class Scorer(nn.Module):
    """A cross-encoder over the forward passes of one backward pass.

    Two things are done once for all passes. Weights are cast to bf16, by one autocast context or in
    the packed kernels. Word embeddings are looked up: otherwise every pass would give a dense
    gradient of the whole vocabulary, which on a CPU costs a small backbone more than a layer.
    """

    def __init__(
        self, model: PreTrainedModel, bf16: bool, recompute: bool = False, by_ids: bool = False
    ) -> None:
        """`recompute` is gradient checkpointing of packed passes; the model has its own for padded
        ones. `by_ids` gives padded passes token ids: decoders, for one, find the last token so."""
        super().__init__()
        self.model = model
        self.bf16, self.recompute, self.by_ids = bf16, recompute, by_ids

    def forward(self, forwards: Sequence[Inputs], seeds: Sequence[int] = ()) -> Tensor:
        """The logits of all pairs, fp32, in the order of the passes; each draws its dropout from
        its own seed if there are seeds."""
        packings = [inputs for inputs in forwards if isinstance(inputs, Packing)]
        if packings:
            return self._packed(packings, seeds)
        return self._padded([inputs for inputs in forwards if isinstance(inputs, dict)], seeds)

    def _packed(self, packings: Sequence[Packing], seeds: Sequence[int]) -> Tensor:
        kernels = TrainingKernels(
            torch.bfloat16 if self.bf16 else torch.float32,
            dropout=self.model.training,
            recompute=self.recompute,
        )
        score = build_scorer(self.model, kernels)
        ids_T = torch.cat([packing.ids_T for packing in packings])
        words = self.model.get_input_embeddings()(ids_T)
        words_of_passes = words.split([len(packing.ids_T) for packing in packings])
        logits = []
        for packing, words_TE in seeded(zip(packings, words_of_passes, strict=True), seeds):
            kernels.packing = packing
            logits.append(score(packing._replace(words_TE=words_TE)))
        return torch.cat(logits)

    def _padded(self, forwards: Sequence[dict[str, Tensor]], seeds: Sequence[int]) -> Tensor:
        bf16 = torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)
        if self.by_ids:
            with bf16, sdpa_kernel(KERNELS):
                passes = [self.model(**inputs).logits[:, 0] for inputs in seeded(forwards, seeds)]
            return torch.cat(passes).float()
        ids_T = torch.cat([inputs["input_ids"].flatten() for inputs in forwards])
        words = self.model.get_input_embeddings()(ids_T)
        words_of_passes = words.split([slots(inputs) for inputs in forwards])
        logits = []
        with bf16, sdpa_kernel(KERNELS):
            pairs = zip(forwards, words_of_passes, strict=True)
            for inputs, words_SE in seeded(pairs, seeds):
                others = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
                words_PLE = words_SE.unflatten(0, inputs["input_ids"].shape)
                output = self.model(inputs_embeds=words_PLE, **others)
                logits.append(output.logits[:, 0].float())
        return torch.cat(logits)


def seeded(passes: Iterable[Item], seeds: Sequence[int]) -> Iterator[Item]:
    """Yields each forward pass's inputs, after seeding PyTorch's generators for it."""
    for inputs, seed in zip_longest(passes, seeds):
        if seed is not None:
            torch.manual_seed(seed)
        yield inputs


def needs_ids(model: PreTrainedModel, encoder: PairEncoder, packed: bool) -> bool:
    """True if padded passes over word embeddings do not give the model's own logits.

    Raises ConfigError if packed passes do not give them.
    """
    probes, device = encoder.probes, model.device
    inputs = {name: tensor.to(device) for name, tensor in encoder.collate(probes).items()}
    forwards = [pack(probes).each(lambda part: part.to(device)) if packed else inputs]
    with quiet_loading(), torch.no_grad():
        expected = model(**inputs).logits[:, 0]
        try:
            fits = same_scores(Scorer(model, bf16=False)(forwards), expected)
        except Exception:  # a family says in its own ways that it does not take embeddings
            if packed:
                raise
            fits = False
    if packed and not fits:
        raise ConfigError(
            f"this {model.config.model_type} model trains on other scores without padding: "
            "set layout to padded"
        )
    return not fits


def slots(inputs: Inputs) -> int:
    """Token slots of a forward pass, padding included."""
    return (inputs.ids_T if isinstance(inputs, Packing) else inputs["input_ids"]).numel()


@contextmanager
def attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Uses another attention implementation inside the block; results differ by rounding."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
