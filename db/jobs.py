"""The verbs on jobs, for `from xsweep.db import jobs`; each is one short transaction."""

from xsweep.db.claim import Claim, Lease, Place, claim, mark_started, renew
from xsweep.db.complete import NewResult, fail, finish, release
from xsweep.db.control import Dropped, Redone, cancel, drop, pause, redo, resume, retry
from xsweep.db.controllers import adopt, expired, requeue_expired, running
from xsweep.db.explain import Explanation, explain
from xsweep.db.submit import NewJob, Submission, add_sweep, preview
