import pytest
import torch

from xsweep.trainer.distributed import (
    GradientBuckets,
    own_device,
    process_group,
)
from xsweep.trainer.engines import open_engine
from xsweep.trainer.forward import Scorer
from xsweep.trainer.specs import OptimisationSpec


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that a number of GPUs is visible; returns the calls of `set_device`."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)

    def visible(count, local_rank=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if local_rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        return calls

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return visible


@pytest.mark.parametrize(("count", "local_rank", "expected"), [(4, 3, 3), (1, 3, 0), (2, None, 0)])
def test_a_rank_takes_the_gpu_of_its_local_rank(gpus, count, local_rank, expected):
    calls = gpus(count, local_rank)
    assert own_device() == torch.device("cuda", expected)
    assert calls == [torch.device("cuda", expected)]


@pytest.fixture
def branches(monkeypatch):
    """A model with a branch that is not used, and its gradients in buckets of 10 numbers."""
    monkeypatch.setattr("xsweep.trainer.distributed.BUCKET_NUMBERS", 10)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("a", "unused", "b")})
    with process_group():
        yield model, GradientBuckets(list(model.parameters()))


def test_buckets_are_under_way_when_the_last_backward_pass_ends(branches):
    model, buckets = branches
    inputs = torch.ones(2, 4)
    for step in range(2):
        model["b"](model["a"](inputs)).sum().backward()
        assert buckets.waits == []
        buckets.overlap()
        model["b"](model["a"](inputs)).sum().backward()
        # The unused parameters are known after the first step.
        assert len(buckets.waits) == (1, len(buckets.buckets))[step]
        buckets.reduce()
        buckets.hide_unused()
        assert model["unused"].weight.grad is None
        # Two passes of two rows each, and one rank: 4 for each bias of the last layer.
        assert model["b"].bias.grad.tolist() == [4.0] * 4
        buckets.clear()
        assert not model["a"].weight.grad.any()


def test_a_rank_whose_backward_pass_fails_still_sums_every_bucket(branches):
    model, buckets = branches

    def fail(_):
        raise torch.OutOfMemoryError("no memory")

    hidden = model["a"](torch.ones(2, 4))
    hidden.register_hook(fail)
    buckets.overlap()
    with pytest.raises(torch.OutOfMemoryError):
        model["b"](hidden).sum().backward()
    assert len(buckets.waits) < len(buckets.buckets)
    summed = []
    sum_next = buckets._sum_next
    buckets._sum_next = lambda: (summed.append(len(buckets.waits)), sum_next())
    under_way = len(buckets.waits)
    buckets.reduce()
    assert summed == list(range(under_way, len(buckets.buckets)))


def test_deepspeed_has_buffers_of_the_models_size_and_asks_no_compiler(world):
    model, *_ = world.prepared()
    settings = OptimisationSpec(steps=1, lr=1e-3, batch_queries=1, zero_stage=1)
    with open_engine(Scorer(model.train(), bf16=False), settings) as engine:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        inner = engine.inner.optimizer
        assert numbers <= inner.reduce_bucket_size == inner.allgather_bucket_size <= numbers + 1
        import deepspeed

        assert deepspeed.ops.__compatible_ops__ == {}
