"""Engines hold the optimiser and update the weights; each gives the same training."""

from collections.abc import Iterator
from contextlib import contextmanager

from xsweep.trainer.distributed import process_group
from xsweep.trainer.engines.deepspeed import DeepSpeedEngine, load_deepspeed
from xsweep.trainer.engines.plain import PlainEngine
from xsweep.trainer.forward import Scorer
from xsweep.trainer.specs import OptimisationSpec


@contextmanager
def open_engine(scorer: Scorer, settings: OptimisationSpec) -> Iterator[PlainEngine]:
    """Opens the engine that the settings name, and its process group, until the block ends."""
    if settings.engine == "plain":
        with process_group():
            yield PlainEngine(scorer, settings)
        return
    deepspeed = load_deepspeed()
    with process_group(destroy=deepspeed.comm.destroy_process_group):
        engine = DeepSpeedEngine(deepspeed, scorer, settings)
        try:
            yield engine
        finally:
            engine.inner.destroy()
