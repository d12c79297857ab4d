"""A step's gradient, computed again in smaller pieces where a device lacks the memory."""

import torch

from evaluator.memory import is_out_of_memory, release_freed_memory
from trainer.budgets import Budgets
from trainer.gradients import Gradients, Prepared, Work
from trainer.ranks import total
from trainer.teachers import Sample


def fit_gradient(
    gradients: Gradients, budgets: Budgets, samples: list[Sample], step: int, prepared: Prepared
) -> Work:
    """Adds the gradient of a global batch, under a smaller budget from here on where memory ends.

    `prepared` may be of an older, larger budget. Ranks hear of each other's failure before they
    exchange gradients, and all halve. Raises the device's error where nothing is left to halve,
    or where the engine cannot go on after it.
    """
    engine, assembler = gradients.engine, gradients.assembler
    while True:
        if prepared.budget != budgets.at(step):
            prepared = gradients.prepare(samples, budgets.at(step))
        part, error = None, None
        try:
            part = gradients.add_part(samples, step, prepared)
        except (RuntimeError, MemoryError) as raised:
            if not is_out_of_memory(raised):
                raise
            # What the failed pass holds lives as long as the error's traceback.
            error = raised.with_traceback(None)
        is_whole = part is not None
        if engine.ranks > 1 and engine.can_agree:
            failed = torch.tensor(float(not is_whole), device=gradients.device)
            is_whole = total(failed).item() == 0
        if part is not None and is_whole:
            return gradients.whole(part)
        assembler.limit(budgets.at(step))
        largest = max(assembler.tokens(piece) for piece in assembler.cut(samples))
        error = error or torch.OutOfMemoryError("another rank of this training ran out of it")
        budgets.halve(step, largest, error)
        if not engine.discard():
            raise error
        release_freed_memory()
