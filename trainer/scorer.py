"""The forward pass of a micro-batch: what an engine wraps and differentiates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Scorer(nn.Module):
    """A cross-encoder over the forward passes of one micro-batch.

    Two things are done once for all passes. One autocast context spans them, so each weight is
    cast to bf16 once. And the word embeddings are looked up once, for the distinct tokens of the
    micro-batch: otherwise every pass would give a dense gradient of the whole vocabulary, which
    on a CPU costs a small backbone more than a layer.
    """

    def __init__(self, model: PreTrainedModel, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(self, forwards: Sequence[dict[str, Tensor]]) -> Tensor:
        """The logits of all pairs, fp32, in the order of the passes."""
        ids_T = torch.cat([inputs["input_ids"].flatten() for inputs in forwards])
        distinct_V, rows_T = ids_T.unique(return_inverse=True)
        embedding = self.model.get_input_embeddings()(distinct_V)
        logits = []
        with torch.autocast(ids_T.device.type, torch.bfloat16, enabled=self.bf16):
            for inputs, rows in zip(
                forwards, rows_T.split([i["input_ids"].numel() for i in forwards]), strict=True
            ):
                others = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
                embedded_PLE = embedding[rows.view(inputs["input_ids"].shape)]
                output = self.model(inputs_embeds=embedded_PLE, **others)
                logits.append(output.logits[:, 0].float())
        return torch.cat(logits)


@contextmanager
def attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Another attention implementation inside the block; the results differ by rounding."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
