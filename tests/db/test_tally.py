from job_table import finish, study, submit, take
from sqlalchemy import text

import xsweep.db.tally
from xsweep.db import controllers
from xsweep.db.check import check
from xsweep.db.status import summary


def test_folding_the_tally_keeps_its_counts(engine, monkeypatch):
    submit(engine, study(seeds=[1]), name="one")
    submit(engine, study(seeds=[1, 2]), name="two")
    controllers.register(engine, owner="alice", host="h", pid=1)
    for _ in range(3):
        finish(engine, take(engine))
        before = summary(engine).sweeps
        monkeypatch.setattr(xsweep.db.tally, "FOLD_ROWS", 1)
        assert controllers.heartbeat(engine, "alice")
        assert summary(engine).sweeps == before
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT sweep_id, kind, state FROM tally")).all()
        assert len(rows) == len(set(rows))
    assert check(engine) == []
