"""Runs the benchmarks one after the other, each in a process of its own, and writes ``bench/RESULTS.md``.

    python -m bench.all [--quick] [--threads 1] [--rounds 15]

The order is from the questions that matter most to those that take longest. A benchmark that fails does not stop the
others, but it is told at the end, and the exit status is 1.
"""

from __future__ import annotations

import subprocess
import sys
import time

from . import results

SCRIPTS = (
    "step", "gradient", "framework", "driver", "ensemble", "memory", "optim", "random",
    "loader", "checkpoint", "compile", "imports", "world",
)  # fmt: skip
APART = ("seek",)  # a peer of it replays ten million samples: `make seek`


def main() -> int:
    """Run them, and tell which targets were missed."""
    failed, began = [], time.monotonic()
    for name in SCRIPTS:
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], check=False)
        print(f"-- {name} took {time.monotonic() - start:.0f} s\n", flush=True)
        failed += [name] if done.returncode else []
    if results.RESULTS.exists():
        rows = results.target_rows(results.RESULTS.read_text())
        print("\n".join([results.TARGETS_HEAD, *rows]))
    print(f"{time.monotonic() - began:.0f} s in all" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
