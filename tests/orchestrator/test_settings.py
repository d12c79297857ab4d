"""Settings from the environment: valid ones, and messages about invalid ones."""

import pytest

from xsweep.db.engine import connect
from xsweep.errors import SetupError
from xsweep.orchestrator.settings import load_settings
from xsweep.orchestrator.storage.store import store_at


def test_leases_waits_and_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("XSWEEP_LEASE_S", "20")
    monkeypatch.setenv("XSWEEP_NODE_WAIT_S", "inf")
    monkeypatch.setenv("XSWEEP_LIMITS", "train=4, evaluate=8")
    monkeypatch.setenv("XSWEEP_TRACKERS", "mlflow, wandb,mlflow")
    settings = load_settings()
    assert settings.trackers == ("mlflow", "wandb")
    assert (settings.lease_s, settings.node_wait_s) == (20.0, float("inf"))
    assert settings.limits == {"train": 4, "evaluate": 8}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("XSWEEP_LEASE_S", "2", "at least 10"),
        ("XSWEEP_LEASE_S", "soon", "give seconds"),
        ("XSWEEP_NODE_WAIT_S", "nan", "give seconds"),
        ("XSWEEP_TRACKERS", "mlflow,wandbb", "did you mean 'wandb'"),
        ("XSWEEP_LIMITS", "train", "not KIND=NUMBER"),
        ("XSWEEP_LIMITS", "report=2", "kinds are prepare, teach, search, train, evaluate"),
    ],
)
def test_an_invalid_setting_is_refused_with_a_remedy(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=message):
        load_settings()


@pytest.mark.parametrize("name", ["exp?1", "pct%41b", "a#b c", "ü"])
def test_the_default_database_lies_in_the_home_whatever_its_name(tmp_path, monkeypatch, name):
    home = tmp_path / name / ".xsweep"
    monkeypatch.setenv("XSWEEP_HOME", str(home))
    connect(load_settings().database, create=True).dispose()
    assert (home / "xsweep.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_path_with_dots_is_the_folder_that_the_system_opens(tmp_path, monkeypatch):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    monkeypatch.setenv("XSWEEP_HOME", str(tmp_path / "link" / ".." / "home"))
    monkeypatch.setenv("XSWEEP_STORE", str(tmp_path / "link" / ".." / "store"))
    settings = load_settings()
    assert settings.home == tmp_path / "disk" / "home"
    store = store_at(settings.store)
    assert store.resolve("jobs/train") == tmp_path / "disk" / "store" / "jobs" / "train"
