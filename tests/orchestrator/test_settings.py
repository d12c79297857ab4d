"""Settings from the environment: what is taken, and what is refused with a message."""

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
    ("name", "value", "words"),
    [
        ("XSWEEP_LEASE_S", "2", "at least 10"),
        ("XSWEEP_LEASE_S", "soon", "give seconds"),
        ("XSWEEP_NODE_WAIT_S", "nan", "give seconds"),
        ("XSWEEP_LIMITS", "train", "no KIND=NUMBER"),
        ("XSWEEP_LIMITS", "report=2", "kinds are prepare, teach, search, train, evaluate"),
    ],
)
def test_a_setting_that_means_nothing_is_told_with_what_would(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=words):
        load_settings()
