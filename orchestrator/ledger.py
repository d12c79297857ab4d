"""What one controller writes of the jobs in its hand, each time under its own name and token."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from db import jobs
from orchestrator.accept import Finished, accept_all
from orchestrator.pruning import Pruner
from xsweep import DataError

log = logging.getLogger("xsweep")


@dataclass(frozen=True)
class Ledger:
    """The jobs' rows as the controller `owner` may change them; a lost lease changes nothing."""

    engine: Engine
    store: Path
    owner: str
    pruner: Pruner
    lease_s: float

    def accept(self, finished: Sequence[tuple[jobs.Claim, str]]) -> set[tuple[int, int]]:
        """Accept finished folders; the (job id, token) pairs of those that count."""
        for job, folder in finished:
            # What a trial measured since the last look is knowledge about its peers, too.
            self.pruner.ends(job, folder)
        folders = [Finished(*pair(job), folder) for job, folder in finished]
        answers = accept_all(self.engine, self.store, folders, owner=self.owner)
        for (job, _), answer in zip(finished, answers, strict=True):
            if isinstance(answer, DataError):
                self.fail(job, "INFRA", str(answer))
            elif not answer:
                log.warning("refused   %s: its lease is another's by now", job.name)
        return {pair(job) for (job, _), ok in zip(finished, answers, strict=True) if ok is True}

    def fail(self, job: jobs.Claim, failure: str, reason: str) -> None:
        """Charge an attempt with a failure; the table decides whether there is another."""
        state = jobs.fail(
            self.engine,
            job_id=job.job_id,
            token=job.token,
            owner=self.owner,
            failure=failure,
            reason=reason,
        )
        log.warning("%-9s %s: %s: %s", state or "refused", job.name, failure, reason)

    def release(self, job: jobs.Claim, reason: str) -> None:
        """Give a job back uncharged."""
        jobs.release(
            self.engine, job_id=job.job_id, token=job.token, owner=self.owner, reason=reason
        )

    def take_over(self, held: jobs.Claim) -> bool:
        """Become the owner of another's attempt; False where it is somebody else's by now."""
        return jobs.adopt(
            self.engine,
            job_id=held.job_id,
            token=held.token,
            old_owner=held.owner,
            new_owner=self.owner,
            lease_s=self.lease_s,
        )


def pair(job: jobs.Claim) -> tuple[int, int]:
    """An attempt's (job id, token)."""
    return job.job_id, job.token
