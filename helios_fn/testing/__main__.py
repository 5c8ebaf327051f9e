"""``python -m helios_fn.testing package.module:function`` runs the laws on the user's own job."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import PurityError
from .first import check_first_step
from .interrupt import Stop
from .laws import check_resume
from .processes import check_resume_processes
from .spec import NoSuchJob, load_job
from .trace import Job
from .verdicts import JobFailed, LawBroken

_LAWS = ("step", "resume")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helios_fn.testing",
        description="Check the laws on your own training job: purity of the step, and that a run stopped anywhere "
        "and resumed equals the run that never stopped, bit for bit.",
        epilog="FUNCTION takes no argument and returns helios_fn.testing.Job(step, state, loader, cfg, keywords): "
        "what you hand to helios_fn.run. Keep cfg.total small: the job runs at least twice, and once more for each of "
        "--stops. Status 0: the laws hold. 1: one is broken. 2: the job itself fails, or there is no such job.",
    )
    parser.add_argument("job", metavar="MODULE:FUNCTION", help="where the job is, such as my_project.train:job")
    parser.add_argument("--laws", type=_laws, default=list(_LAWS), help="comma separated: step, resume (default: both)")
    parser.add_argument(
        "--stops", type=_stops, help="comma separated iterations to crash after, one run each (default: a spread)"
    )
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="run all parts of a run in one process: faster, but blind to what the job keeps in its process",
    )
    return parser


def _laws(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in _LAWS:
            raise argparse.ArgumentTypeError(f"there is no law called {name!r}: choose from {', '.join(_LAWS)}")
    return names


def _stops(text: str) -> list[Stop]:
    try:
        return [Stop(int(each)) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"write iterations with commas between, such as 1,4,7; got {text!r}") from None


def _check_step(job: Job) -> None:
    try:
        check_first_step(job)
    except (LawBroken, PurityError):
        raise
    except Exception as error:
        raise JobFailed(f"the job itself failed, in its first step: {error}") from error


def _verdict(law: Callable[[], Any]) -> tuple[int, str]:
    try:
        law()
    except (LawBroken, PurityError) as error:
        return 1, f"BROKEN\n{error}"
    except (JobFailed, ValueError) as error:
        cause = error.__cause__
        return 2, f"not checked\n{error}" + ("" if cause is None else "\n" + "".join(traceback.format_exception(cause)))
    return 0, "holds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen laws; the status is described in ``--help``."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, "")
    try:
        job = load_job(options.job)
    except NoSuchJob as error:
        parser.error(str(error))
    except Exception:
        print(f"the job itself failed, before it was made:\n{traceback.format_exc()}")
        return 2

    def resume() -> None:
        if options.in_process:
            check_resume(job.step, job.state, job.loader, job.cfg, stops=options.stops, **job.keywords)
        else:
            check_resume_processes(options.job, stops=options.stops)

    laws: dict[str, Callable[[], None]] = {"step": lambda: _check_step(job), "resume": resume}
    statuses = [0]
    for name in options.laws:
        status, verdict = _verdict(laws[name])
        print(f"{name}: {verdict}", flush=True)
        statuses.append(status)
        if status == 2:
            break  # the next law would fail in the same way
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
