"""After any sequence of verbs the database agrees with a plain Python model of the rules."""

from collections import Counter
from typing import Any

import pytest
from chaos import CHAOS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from job_table import expire, fail, finish, new_job, states, submit
from sqlalchemy import Engine, text

from xsweep.db import jobs
from xsweep.db.check import check
from xsweep.db.jobs import Claim
from xsweep.db.schema import RETRIES
from xsweep.errors import ConfigError

GRID = {
    "tokens": (),
    "candidates": (),
    "teach": ("candidates",),
    "train 1": ("tokens", "teach"),
    "train 2": ("tokens",),
    "test 1": ("train 1", "candidates"),
    "test 2": ("train 2", "candidates"),
}
SWEEPS = {"small": ["tokens", "candidates", "train 2", "test 2"], "whole": list(GRID)}
BROKEN = {"failed", "skipped", "cancelled"}
OPEN = {"waiting", "ready", "running"}

sweeps = st.sampled_from(sorted(SWEEPS))
names = st.sampled_from(sorted(GRID))
failures = st.sampled_from(["CONFIG", "HANG", "UNKNOWN", "PREEMPTED"])


class Model:
    """The rules of the job table over plain dictionaries."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.sweeps: dict[str, str] = {}
        self.failures: Counter[tuple[str, str]] = Counter()

    def submit(self, sweep: str) -> None:
        new = [name for name in SWEEPS[sweep] if name not in self.state]
        for name in GRID:  # parents stand before their children
            if name in new:
                broken = any(self.state[parent] in BROKEN for parent in GRID[name])
                self.state[name] = "skipped" if broken else self.open_state(name)
        if sweep not in self.sweeps:
            self.sweeps[sweep] = "active"

    def open_state(self, name: str) -> str:
        return "ready" if all(self.state[p] == "done" for p in GRID[name]) else "waiting"

    def claimable(self) -> list[str]:
        active = {n for s, state in self.sweeps.items() if state == "active" for n in SWEEPS[s]}
        return [name for name, state in self.state.items() if state == "ready" and name in active]

    def finish(self, name: str) -> None:
        self.state[name] = "done"
        for child, parents in GRID.items():
            if name in parents and self.state.get(child) == "waiting":
                self.state[child] = self.open_state(child)

    def fail(self, name: str, failure: str) -> str:
        self.failures[name, failure] += 1
        allowed = RETRIES[failure]
        if allowed is None or self.failures[name, failure] <= allowed:
            self.state[name] = "ready"
        else:
            self.state[name] = "failed"
            self.skip_below({name})
        return self.state[name]

    def skip_below(self, names: set[str]) -> None:
        for child, parents in GRID.items():
            if names & set(parents) and self.state.get(child) == "waiting":
                self.state[child] = "skipped"
                self.skip_below({child})

    def cancel(self, names: set[str]) -> int:
        ended = {name for name in names if self.state.get(name) in OPEN}
        for name in ended:
            self.state[name] = "cancelled"
        self.skip_below(ended)
        return len(ended)

    def retry(self, names: set[str]) -> int:
        todo, reopened = set(names), set()
        while able := self.reopen(todo):
            self.revive(able)
            skipped = {
                child
                for child, parents in GRID.items()
                if able & set(parents) and self.state.get(child) == "skipped"
            }
            todo = (todo - able) | {child for child in skipped if self.is_needed(child)}
            reopened |= able
        return len(reopened)

    def reopen(self, names: set[str]) -> set[str]:
        able = set()
        for name, parents in GRID.items():
            if name not in names or self.state.get(name) not in BROKEN:
                continue
            if not any(self.state[parent] in BROKEN for parent in parents):
                self.state[name] = self.open_state(name)
                self.failures -= Counter({k: v for k, v in self.failures.items() if k[0] == name})
                able.add(name)
        return able

    def is_needed(self, name: str) -> bool:
        return any(
            state != "cancelled" and name in SWEEPS[sweep] for sweep, state in self.sweeps.items()
        )

    def revive(self, reopened: set[str]) -> None:
        """Reopen the cancelled sweeps of reopened jobs that no other sweep has."""
        before = dict(self.sweeps)
        for name in reopened:
            mine = [sweep for sweep in before if name in SWEEPS[sweep]]
            if all(before[sweep] == "cancelled" for sweep in mine):
                self.sweeps.update(dict.fromkeys(mine, "active"))

    def redo(self, name: str) -> set[str]:
        retired = {name}
        for child, parents in GRID.items():
            if retired & set(parents) and self.state.get(child) == "done":
                retired.add(child)
        for each in retired:
            self.state[each] = "ready"
        for child, parents in GRID.items():
            if retired & set(parents) and self.state.get(child) in ("ready", "running"):
                self.state[child] = "waiting"
        self.failures -= Counter({k: v for k, v in self.failures.items() if k[0] in retired})
        return retired

    def ancestors(self, name: str) -> set[str]:
        return set(GRID[name]).union(*(self.ancestors(parent) for parent in GRID[name]))


class JobTable(RuleBasedStateMachine):
    engine: Engine

    @initialize()
    def start(self) -> None:
        self.model = Model()
        self.held: list[tuple[str, Claim]] = []  # owners and the claims they believe to hold

    def live(self, owner: str, claim: Claim) -> bool:
        """True if the model's latest attempt of the job is this one, and it runs."""
        latest = max(other.token for _, other in self.held if other.name == claim.name)
        return self.model.state[claim.name] == "running" and claim.token == latest

    @rule(sweep=sweeps)
    def submits(self, sweep: str) -> None:
        new = [name for name in SWEEPS[sweep] if name not in self.model.state]
        added = submit(self.engine, [new_job(n, *GRID[n]) for n in SWEEPS[sweep]], name=sweep)
        assert added.new == len(new)
        self.model.submit(sweep)

    @rule(owner=st.sampled_from(["alice", "bob"]), limit=st.integers(1, 3))
    def claims(self, owner: str, limit: int) -> None:
        claimable = self.model.claimable()
        taken = jobs.claim(self.engine, owner=owner, limit=limit, lease_s=600)
        assert len(taken) == min(limit, len(claimable))
        assert {claim.name for claim in taken} <= set(claimable)
        for claim in taken:
            assert set(claim.inputs) == set(GRID[claim.name])
            self.model.state[claim.name] = "running"
            self.held.append((owner, claim))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finishes(self, data: Any) -> None:
        owner, claim = data.draw(st.sampled_from(self.held))
        live = self.live(owner, claim)
        was_accepted = self.model.state[claim.name] == "done" and claim.token == max(
            other.token for _, other in self.held if other.name == claim.name
        )
        assert finish(self.engine, claim) == (live or was_accepted)
        if live:
            self.model.finish(claim.name)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), failure=failures)
    def fails(self, data: Any, failure: str) -> None:
        owner, claim = data.draw(st.sampled_from(self.held))
        if self.live(owner, claim):
            assert fail(self.engine, claim, failure) == self.model.fail(claim.name, failure)
        else:
            before = states(self.engine)
            assert fail(self.engine, claim, failure) in (None, before[claim.name])
            assert states(self.engine) == before

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def gives_back(self, data: Any) -> None:
        owner, claim = data.draw(st.sampled_from(self.held))
        if self.live(owner, claim):
            assert jobs.release(self.engine, claim.lease, reason="drain")
            self.model.state[claim.name] = "ready"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def loses_its_lease(self, data: Any) -> None:
        owner, claim = data.draw(st.sampled_from(self.held))
        live = self.live(owner, claim)
        if live:
            expire(self.engine, claim)
        assert jobs.requeue_expired(self.engine, claim.lease) == live
        if live:
            self.model.fail(claim.name, "NODE")

    @rule()
    def renews(self) -> None:
        for owner in ("alice", "bob"):
            leases = [claim.lease for other, claim in self.held if other == owner]
            held = {c.lease for other, c in self.held if other == owner and self.live(other, c)}
            assert jobs.renew(self.engine, leases, lease_s=600) == held

    @precondition(lambda self: self.model.sweeps)
    @rule(sweep=sweeps)
    def cancels_a_sweep(self, sweep: str) -> None:
        if sweep not in self.model.sweeps:
            return
        self.model.sweeps[sweep] = "cancelled"
        needed = {
            name
            for other, state in self.model.sweeps.items()
            if state != "cancelled"
            for name in SWEEPS[other]
        }
        ended = self.model.cancel(set(SWEEPS[sweep]) - needed)
        assert jobs.cancel(self.engine, sweep=sweep) == ended

    @rule(name=names)
    def cancels_a_job(self, name: str) -> None:
        if name in self.model.state:
            assert jobs.cancel(self.engine, job=name) == self.model.cancel({name})

    @rule(sweep=sweeps, state=st.sampled_from(["paused", "active"]))
    def pauses_or_resumes(self, sweep: str, state: str) -> None:
        if self.model.sweeps.get(sweep, "cancelled") != "cancelled":
            (jobs.pause if state == "paused" else jobs.resume)(self.engine, sweep)
            self.model.sweeps[sweep] = state

    @rule(sweep=sweeps, only=st.none() | failures)
    def retries_a_sweep(self, sweep: str, only: str | None) -> None:
        if sweep not in self.model.sweeps:
            return
        with self.engine.connect() as connection:
            query = "SELECT name FROM job WHERE failure = :only"
            failed = set(connection.scalars(text(query), {"only": only}))
        ended = {n for n in SWEEPS[sweep] if self.model.state[n] in ("failed", "cancelled")}
        chosen = ended & failed if only else ended
        given = {"failures": [only]} if only else {}
        if self.model.sweeps[sweep] == "cancelled":
            self.model.sweeps[sweep] = "active"
        assert jobs.retry(self.engine, sweep=sweep, **given) == self.model.retry(chosen)

    @rule(name=names)
    def retries_a_job(self, name: str) -> None:
        if name in self.model.state:
            count = self.model.retry({name} | self.model.ancestors(name))
            assert jobs.retry(self.engine, job=name) == count

    @rule(name=names)
    def redoes_a_job(self, name: str) -> None:
        if self.model.state.get(name) == "done":
            retired = self.model.redo(name)
            foreseen = jobs.redo(self.engine, name, dry_run=True)
            assert jobs.redo(self.engine, name) == foreseen
            assert set(foreseen.names) == retired
            self.model.revive(retired)
        elif name in self.model.state:
            with pytest.raises(ConfigError, match="only a done one can be redone"):
                jobs.redo(self.engine, name)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "model"):
            assert states(self.engine) == self.model.state
            with self.engine.connect() as connection:
                rows = connection.execute(text("SELECT name, state FROM sweep"))
                assert dict(rows.tuples().all()) == self.model.sweeps

    def teardown(self) -> None:
        assert check(self.engine) == []
        empty(self.engine)


def empty(engine: Engine) -> None:
    """Remove all rows without the guards."""
    tables = "score query_set result event controller attempt sweep_job edge definition job sweep"
    with engine.begin() as connection:
        guards = []
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            guards = connection.execute(text(query)).all()
        for name, _ in guards:
            connection.execute(text(f"DROP TRIGGER {name}"))
        for table in ("tally", *tables.split()):
            connection.execute(text(f"DELETE FROM {table}"))
        for _, sql in guards:
            connection.exec_driver_sql(sql)


@pytest.mark.parametrize("examples", [100 if CHAOS else 25])
@pytest.mark.timeout(900 if CHAOS else 300)
def test_the_verbs_follow_the_rules_in_any_order(engine, examples):
    machine = type("OnThisDatabase", (JobTable,), {"engine": engine})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=checks,
        ),
    )
