from pathlib import Path

from trainer.energy import EnergyMeter, is_first, processors


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


def test_a_hosts_processors_are_counted_by_its_first_rank_alone() -> None:
    hosts = ["a", "b", "a", "b", "c"]
    assert [is_first(hosts, rank) for rank in range(5)] == [True, True, False, False, True]
