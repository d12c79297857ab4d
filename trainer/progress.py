"""How far a training is, as its checkpoints keep it."""

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """What has been done so far; `step` counts finished steps."""

    step: int = 0
    loss: float = math.nan
    pairs: int = 0
    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    """Of training steps alone."""
    validation_seconds: float = 0.0
    best_step: int = 0
    best_validation: float | None = None
    validations_since_best: int = 0
    ranks: list[list[int]] = field(default_factory=list)
    """[step, ranks]: how many processes computed it from that step on."""
    halved_budgets: list[list[int]] = field(default_factory=list)
    """[step, micro_batch_tokens]: where memory ran out and the budget was halved."""
    halted: bool = False
    """Whether it was ended before its last step, since others of its search are better."""

    @property
    def pairs_per_s(self) -> float:
        """Query-document pairs trained on in a second, by all ranks together."""
        return self.pairs / self.seconds if self.seconds else 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the computed token slots that were padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0
