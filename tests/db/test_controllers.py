from sqlalchemy import text

from xsweep.db import controllers
from xsweep.db.status import live_controllers


def test_controllers_are_alive_while_their_heartbeats_are_recent(engine):
    for owner in ("first", "second"):
        controllers.register(engine, owner=owner, host="same", pid=1)
    assert {live.owner for live in live_controllers(engine)} == {"first", "second"}
    with engine.begin() as connection:
        dead = "UPDATE controller SET heartbeat_at = heartbeat_at - 100 WHERE owner = 'first'"
        connection.execute(text(dead))
    assert [live.owner for live in live_controllers(engine)] == ["second"]
    assert controllers.heartbeat(engine, "first")
    assert len(live_controllers(engine)) == 2
    controllers.unregister(engine, "first")
    assert not controllers.heartbeat(engine, "first")
