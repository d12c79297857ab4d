"""The verbs on jobs, for `from xsweep.db import jobs`; each is one short transaction."""

from xsweep.db.claim import Claim, Place, claim, renew, started, started_all
from xsweep.db.complete import NewResult, fail, finish, finish_all, release
from xsweep.db.control import cancel, pause, resume, retry
from xsweep.db.explain import Explanation, explain, find_job, find_sweep
from xsweep.db.recover import adopt, expired, requeue_expired, running
from xsweep.db.submit import NewJob, Submission, add_sweep, preview

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
