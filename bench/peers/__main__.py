"""Runs the trials of every library, each in a process of its own, and writes ``bench/PEERS.md``.

    python -m bench.peers [--quick] [--only NAME...] [--jobs 2]

A quick run kills at a few places and writes nothing. The exit status is 1 if a resume of helios_fn was not exact.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import machine
from .report import report
from .trials import EVERYWHERE, QUICK, Findings

ADAPTERS = (
    "helios_fn", "helios_fn_waiting", "by_hand", "stateful", "lightning", "accelerate", "accelerate_stateful",
    "ignite", "helios",
)  # fmt: skip
SLOWEST_FIRST = ("helios_fn", "helios_fn_waiting", "helios", "accelerate", "accelerate_stateful")
WRITTEN = Path(__file__).parents[1] / "PEERS.md"
TIMEOUT = 1200.0  # seconds for one library


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="kill at a few places only, and write nothing")
    parser.add_argument("--only", nargs="+", choices=ADAPTERS, default=ADAPTERS, help="these libraries")
    parser.add_argument("--jobs", type=int, default=2, help="libraries at a time")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        order = sorted(given.only, key=lambda name: name not in SLOWEST_FIRST)
        futures = {name: pool.submit(_findings, name, Path(folder), given.quick) for name in order}
        findings = [futures[name].result() for name in given.only]
    text = report(findings, versions(), QUICK if given.quick else EVERYWHERE)
    print(text)
    print(f"{time.monotonic() - began:.0f} s in all")
    if not given.quick and len(findings) == len(ADAPTERS):
        WRITTEN.write_text(text)
    wrong = [
        trial for found in findings if found.name.startswith("helios_fn") for trial in found.trials if trial.verdict.why
    ]
    for trial in wrong:
        print(f"helios_fn was not exact: {trial}", file=sys.stderr)
    return bool(wrong)


def versions() -> str:
    """Of everything that takes part, in a line."""
    facts = machine.describe()
    return ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", *machine.PEERS) if name in facts) + "."


def _findings(name: str, folder: Path, quick: bool) -> Findings:
    command = [sys.executable, "-m", "bench.peers.trials", name, str(folder), *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        failure = done.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        failure = f"no end after {TIMEOUT:g} seconds"
    written = folder / f"{name}.json"
    if not written.exists():
        found = Findings(name, name, "", False, [], failure)
    else:
        found = Findings.from_json(written.read_text())
    print(f"-- {name}: {found.error or f'{len(found.trials)} trials, {found.seconds:.0f} s'}", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
