from pathlib import Path

from trainer.energy import EnergyMeter, open_meter, processors


def _zone(folder: Path, name: str, microjoules: int) -> Path:
    (folder / name).mkdir()
    (folder / name / "max_energy_range_uj").write_text("5000000\n")
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    return folder / name / "energy_uj"


def test_two_processors_are_added_and_their_parts_left_out(tmp_path: Path) -> None:
    first, second = _zone(tmp_path, "intel-rapl:0", 1_000_000), _zone(tmp_path, "intel-rapl:1", 0)
    _zone(tmp_path, "intel-rapl:0:0", 7)
    (tmp_path / "intel-rapl:2").mkdir()  # one that may not be read
    meter = EnergyMeter(processors(tmp_path))
    first.write_text("3500000\n")
    second.write_text("500000\n")
    assert meter.spent() == 2.5 + 0.5
    assert meter.spent() == 0


def test_a_counter_that_started_again_is_followed(tmp_path: Path) -> None:
    counter = _zone(tmp_path, "intel-rapl:0", 4_000_000)
    meter = EnergyMeter(processors(tmp_path))
    counter.write_text("1000000\n")
    meter.sample()  # 4 to 5, then 0 to 1
    counter.write_text("500000\n")
    assert meter.spent() == 2.0 + 4.5


def test_a_machine_without_counters_measures_nothing(tmp_path: Path) -> None:
    assert processors(tmp_path / "none") == []
    assert EnergyMeter([]).spent() == 0


def test_only_the_first_process_of_a_machine_counts_its_processors(monkeypatch) -> None:
    monkeypatch.setattr("trainer.energy.processors", lambda: 1 / 0)
    monkeypatch.setattr("trainer.energy.gpu", lambda: [])
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert open_meter().spent() == 0
