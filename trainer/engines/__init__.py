"""Engines hold the optimiser and update the weights; each gives the same training."""

from contextlib import AbstractContextManager

from xsweep.trainer.engines.deepspeed import open_deepspeed
from xsweep.trainer.engines.plain import PlainEngine, open_plain
from xsweep.trainer.forward import Scorer
from xsweep.trainer.specs import OptimisationSpec


def open_engine(scorer: Scorer, settings: OptimisationSpec) -> AbstractContextManager[PlainEngine]:
    """Opens the engine that the settings name, and its process group, until the block ends."""
    open_named = open_deepspeed if settings.engine == "deepspeed" else open_plain
    return open_named(scorer, settings)
