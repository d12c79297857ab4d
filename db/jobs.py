"""The verbs on jobs, for `from db import jobs`; each is one short transaction."""

from db.acceptance import NewResult, finish, finish_all
from db.claims import Claim, claim
from db.control import cancel, pause, resume, retry
from db.explain import Explanation, explain
from db.leases import Place, renew, started, started_all
from db.lookup import find_job, find_sweep
from db.outcomes import fail, release
from db.recovery import adopt, expired, requeue_expired, running
from db.submission import NewJob, Submission, add_sweep, preview

__all__ = [
    "Claim",
    "Explanation",
    "NewJob",
    "NewResult",
    "Place",
    "Submission",
    "add_sweep",
    "adopt",
    "cancel",
    "claim",
    "expired",
    "explain",
    "fail",
    "find_job",
    "find_sweep",
    "finish",
    "finish_all",
    "pause",
    "preview",
    "release",
    "renew",
    "requeue_expired",
    "resume",
    "retry",
    "running",
    "started",
    "started_all",
]
