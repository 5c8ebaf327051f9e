"""The laws of helios_fn for the user's own step, loader and configuration, in the user's own CI.

In a test file, with pytest::

    from helios_fn.testing import check_resume, check_step
    def test_my_training_is_resumable():
        check_resume(step, state, loader, cfg, validate=validate)

From the command line, where ``my_project.train:job`` returns a `Job`::

    python -m helios_fn.testing my_project.train:job

and, with every part of a run in a process of its own, in a test: ``check_resume_processes("my_project.train:job")``.
That the number of processes changes nothing: ``check_world("my_project.train:job")``.

With Hypothesis, over generated interruptions, see `helios_fn.testing.strategies`.
"""

from .bill import MemoryBill as MemoryBill
from .compare import assert_same_run as assert_same_run
from .dry import dry_run as dry_run
from .interrupt import Crash as Crash
from .interrupt import Stop as Stop
from .laws import check_resume as check_resume
from .laws import check_workers as check_workers
from .preset import Pinned as Pinned
from .preset import deterministic as deterministic
from .processes import check_resume_processes as check_resume_processes
from .step import check_step as check_step
from .trace import Job as Job
from .trace import Trace as Trace
from .trace import run_with as run_with
from .verdicts import JobFailed as JobFailed
from .verdicts import LawBroken as LawBroken
from .world import check_world as check_world
