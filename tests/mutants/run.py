"""Plant faults one at a time and show that the suite catches every one.

    make mutants                      # all of them
    python tests/mutants/run.py NAME  # one

Each mutant is a known fault of training loops, as a replacement of text in one file. It is planted in
a copy of the repository, and the tests named with it must fail there. The text must occur exactly once,
so a mutant that no longer fits the code is an error and not a pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]


class Verdict(NamedTuple):
    """What the suite said about a planted fault."""

    caught: bool
    by: str
    seconds: float


def plant(fault: Fault, copy: Path) -> None:
    """Write the fault into a copy of the repository."""
    path = copy / fault.file
    text = path.read_text()
    found = text.count(fault.before)
    if found != 1:
        raise SystemExit(f"{fault.name}: its text occurs {found} times in {fault.file}; adapt the mutant to the code")
    path.write_text(text.replace(fault.before, fault.after))


def attempt(fault: Fault) -> Verdict:
    """Plant a fault in a fresh copy and run the tests that should notice."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv", "build", "runs", ".hypothesis", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        plant(fault, copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *fault.tests]
        environment = {
            **os.environ,
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HELIOS_FN_PROFILE": "mutants",
        }
        begin = time.monotonic()
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begin
    if done.returncode not in (0, 1):
        raise SystemExit(f"{fault.name}: pytest itself failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    return Verdict(done.returncode == 1, failed.group(1) if failed else "-", seconds)


def main() -> int:
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or fault.name in sys.argv[1:]]
    if not chosen:
        raise SystemExit(f"no such mutant; there are: {', '.join(fault.name for fault in FAULTS)}")
    missed = []
    for fault in chosen:
        verdict = attempt(fault)
        print(
            f"{'caught' if verdict.caught else 'MISSED':8}{fault.name:44}{verdict.seconds:6.0f} s  {verdict.by}",
            flush=True,
        )
        if not verdict.caught:
            missed.append(fault.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
