"""Settings from the environment: valid ones, and messages about invalid ones."""

import pytest

from xsweep.errors import SetupError
from xsweep.orchestrator.settings import load_settings


def test_leases_waits_and_limits_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("XSWEEP_LEASE_S", "20")
    monkeypatch.setenv("XSWEEP_NODE_WAIT_S", "inf")
    monkeypatch.setenv("XSWEEP_LIMITS", "train=4, evaluate=8")
    settings = load_settings()
    assert (settings.lease_s, settings.node_wait_s) == (20.0, float("inf"))
    assert settings.limits == {"train": 4, "evaluate": 8}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("XSWEEP_LEASE_S", "2", "at least 10"),
        ("XSWEEP_LEASE_S", "soon", "give seconds"),
        ("XSWEEP_NODE_WAIT_S", "nan", "give seconds"),
        ("XSWEEP_LIMITS", "train", "not KIND=NUMBER"),
        ("XSWEEP_LIMITS", "report=2", "kinds are prepare, teach, search, train, evaluate"),
    ],
)
def test_an_invalid_setting_is_refused_with_a_remedy(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=message):
        load_settings()
