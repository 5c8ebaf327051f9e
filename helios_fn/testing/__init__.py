"""The laws of helios_fn for the user's own step, loader and configuration, in the user's own CI.

In a test file, with pytest, where ``my_project.train:job`` returns a `Job`::

    @pytest.mark.helios_fn(job="my_project.train:job", laws=["step", "resume", "workers"])
    def test_my_training(law):
        law.check()

or, law by law, ``check_resume(step, state, loader, cfg, validate=validate)``. From the command line, where ``--help``
lists the laws, and where every part of a run has a process of its own::

    python -m helios_fn.testing my_project.train:job

Each law is one call with two forms: a quick deterministic one, and with ``examples=100`` as many examples by
Hypothesis, of which the simplest that breaks the law is shown. For laws of your own there are
`helios_fn.testing.strategies`, and for any order of events `helios_fn.testing.machine`.
"""

from .accumulation import check_accumulation as check_accumulation
from .bill import MemoryBill as MemoryBill
from .compare import assert_same_run as assert_same_run
from .counting import check_counting as check_counting
from .dry import dry_run as dry_run
from .interrupt import Crash as Crash
from .interrupt import Stop as Stop
from .laws import check_resume as check_resume
from .laws import check_workers as check_workers
from .observation import check_observation as check_observation
from .order import check_order as check_order
from .preset import Pinned as Pinned
from .preset import deterministic as deterministic
from .processes import check_resume_processes as check_resume_processes
from .round_trip import check_round_trip as check_round_trip
from .step import check_step as check_step
from .trace import Job as Job
from .trace import Trace as Trace
from .trace import run_with as run_with
from .validation import check_validation as check_validation
from .verdicts import JobFailed as JobFailed
from .verdicts import LawBroken as LawBroken
from .verdicts import LawDoesNotApply as LawDoesNotApply
from .world import check_world as check_world
