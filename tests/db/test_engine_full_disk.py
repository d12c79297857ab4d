import pytest
from disks import run_on_a_small_disk
from job_table import finish, new_job, states, submit, take
from sqlalchemy import text

import xsweep.db.engine
from xsweep.db.engine import connect
from xsweep.errors import SetupError


def test_a_full_database_raises_an_error_and_loses_nothing(tmp_path):
    engine = connect(f"sqlite:///{tmp_path}/x.db", create=True)
    submit(engine, [new_job("train")])
    with engine.connect() as connection:
        pages = connection.scalar(text("PRAGMA page_count"))
    claim = take(engine)

    def fill(raw, _):
        raw.execute(f"PRAGMA max_page_count = {pages + 8}")

    xsweep.db.engine.event.listen(engine, "connect", fill)
    engine.dispose()
    with pytest.raises(SetupError, match="full; free some space; what was committed is safe"):
        finish(engine, claim, summary={"text": "x" * 1_000_000})
    assert states(engine) == {"train": "running"}
    assert finish(engine, claim)


ON_A_FULL_DISK = """
from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.engine import connect
from xsweep.errors import SetupError

engine = connect(f"sqlite:///{disk}/x.db", create=True)
new = jobs.NewJob(identity="0" * 64, kind="train", name="train", spec={})
jobs.add_sweep(engine, name="study", grid="", jobs=[new])
(claim,) = jobs.claim(engine, owner="alice", limit=1, lease_s=60)
result = jobs.NewResult(
    lease=claim.lease,
    folder="f",
    manifest_sha256="s",
    summary={"text": "x" * 500_000},
    provenance={},
)

def finish():
    return bool(jobs.finish(engine, [result]))

fill()
try:
    finish()
except SetupError as error:
    print(error)
print([held.name for held in jobs.running(engine)], check(engine))
(disk / "filler").unlink()
print(finish(), [held.name for held in jobs.running(engine)], check(engine))
"""


def test_a_full_disk_raises_an_error_and_loses_nothing(tmp_path):
    refused, after, freed = run_on_a_small_disk(ON_A_FULL_DISK, tmp_path / "disk").splitlines()
    assert refused.endswith("full; free some space; what was committed is safe")
    assert after == "['train'] []"
    assert freed == "True [] []"


ON_A_READ_ONLY_DISK = """
import subprocess

def remount(mode):
    engine.dispose()
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

remount("ro")
for _ in range(2):
    try:
        finish()
    except SetupError as error:
        print(error)
remount("rw")
print(finish(), [held.name for held in jobs.running(engine)], check(engine))
"""


def test_a_disk_that_is_read_only_for_a_while_loses_nothing(tmp_path):
    program = ON_A_FULL_DISK.partition("fill()")[0] + ON_A_READ_ONLY_DISK
    *refused, after = run_on_a_small_disk(program, tmp_path / "disk").splitlines()
    assert len(refused) == 2
    assert all(line.endswith("; make the file and its folder writable") for line in refused)
    assert after == "True [] []"
