import pytest

from xsweep.trainer.optimizer import learning_rate
from xsweep.trainer.specs import OptimisationSpec


def rates(schedule, steps=6, warmup_steps=2):
    settings = OptimisationSpec(
        steps=steps, warmup_steps=warmup_steps, lr=0.5, batch_queries=1, schedule=schedule
    )
    return [learning_rate(settings, step) / 0.5 for step in range(steps)]


def test_a_linear_schedule_warms_up_and_falls_to_zero():
    assert rates("linear") == [0, 0.5, 1, 0.75, 0.5, 0.25]


def test_a_cosine_schedule_is_halfway_down_in_the_middle():
    assert rates("cosine") == pytest.approx([0, 0.5, 1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_a_constant_schedule_stays_after_the_warm_up():
    assert rates("constant") == [0, 0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_equal_those_of_transformers(schedule):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=3, num_training_steps=20)
    theirs = []
    for _ in range(20):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(schedule, steps=20, warmup_steps=3) == pytest.approx(theirs)
