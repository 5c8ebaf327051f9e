"""``python -m helios_fn.testing package.module:function`` runs the laws on the user's own job."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .. import random, schedule
from ..data import Phases
from ..driver.batches import one_source, step_input
from ..types import Cursor
from .interrupt import Stop
from .laws import check_resume, check_step
from .trace import Job


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helios_fn.testing",
        description="Check the laws on your own training job: purity of the step, and that a run stopped anywhere "
        "and resumed equals the run that never stopped, bit for bit.",
        epilog="FUNCTION takes no argument and returns helios_fn.testing.Job(step, state, loader, cfg, keywords): "
        "what you hand to helios_fn.run. Keep cfg.total small; the job runs once for each stop.",
    )
    parser.add_argument("job", metavar="MODULE:FUNCTION", help="where the job is, such as my_project.train:job")
    parser.add_argument("--laws", default="step,resume", help="comma separated: step, resume (default: both)")
    parser.add_argument("--stops", default=None, help="comma separated iterations to crash after (default: a spread)")
    return parser


def load_job(spec: str) -> Job:
    """Import ``module:function`` and call it.

    Raises:
        SystemExit: the spec cannot be read, or the function does not return a `Job`.
    """
    module_name, _, function_name = spec.partition(":")
    if not function_name:
        sys.exit(f"{spec!r} names no function: write MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        sys.exit(f"cannot find {spec!r}: {error}")
    job = function()
    if not isinstance(job, Job):
        sys.exit(f"{spec} returned {type(job).__name__}: return helios_fn.testing.Job(step, state, loader, cfg)")
    return job


def check_first_step(job: Job) -> None:
    """`check_step` on the job's initial state and first batch."""
    state = job.state() if callable(job.state) else job.state
    loader = job.loader() if callable(job.loader) else job.loader
    source = one_source(loader.source(0) if isinstance(loader, Phases) else loader)
    share = schedule.share_of(job.cfg)
    feed = source.open(Cursor(), key=state.key, share=share)
    try:
        with random.preserved_globals():
            batch = step_input(next(iter(feed)), share.micro_batches, job.cfg.reduction, job.cfg.device)
    finally:
        feed.close()
        source.close()
    check_step(job.step, state, batch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen laws; 0 when all hold."""
    options = _parser().parse_args(arguments)
    job = load_job(options.job)
    stops = None if options.stops is None else [Stop(int(each)) for each in options.stops.split(",")]
    laws: dict[str, Callable[[], Any]] = {
        "step": lambda: check_first_step(job),
        "resume": lambda: check_resume(job.step, job.state, job.loader, job.cfg, stops=stops, **job.keywords),
    }
    failed = 0
    for name in options.laws.split(","):
        if name not in laws:
            sys.exit(f"there is no law called {name!r}: choose from {', '.join(laws)}")
        try:
            laws[name]()
        except Exception as error:
            failed += 1
            print(f"{name}: BROKEN\n{error}")
        else:
            print(f"{name}: holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
