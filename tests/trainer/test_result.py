import json

from xsweep.trainer.result import MetricsLog, read_metrics


def test_an_attempt_continues_the_records_up_to_its_step(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with MetricsLog(first, steps=10) as log:
        for step in range(1, 6):
            log.add({"step": step, "loss": 1.0 / step})
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with MetricsLog(second, 10, read_metrics([second, first], last_step=3)) as log:
        log.add({"step": 4, "loss": 0.5})
    records = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["loss"] == 0.5


def test_long_trainings_record_every_nth_step_and_every_validation(tmp_path):
    with MetricsLog(tmp_path, steps=200_000) as log:
        for step in (50, 100, 149, 151):
            log.add({"step": step, "loss": 1.0} | ({"validation": 0.5} if step == 149 else {}))
    assert [record["step"] for record in read_metrics([tmp_path], 150)] == [100, 149]


def test_scalars_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, steps=2) as log:
        log.add({"step": 1, "loss": 0.25, "lr": 0.5})
        log.add({"step": 2, "loss": 0.125, "lr": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 0.25),
        (2, 0.125),
    ]
