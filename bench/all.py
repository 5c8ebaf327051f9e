"""Runs the benchmarks one after the other, each in a process of its own, and writes ``bench/RESULTS.md``.

    python -m bench.all [--more] [--quick] [--threads 1] [--rounds 9]

These are the benchmarks of training on one machine; with ``--more`` those of disks, of several processes and of long
data instead. The first one leaves to the others what it has compiled. A benchmark that fails does not stop the others,
but it is told at the end, and the exit status is 1.
"""

from __future__ import annotations

import subprocess
import sys
import time

from . import results

SCRIPTS = (
    "compile", "step", "gradient", "framework", "driver", "ensemble", "memory", "optim", "random", "loader", "imports",
)  # fmt: skip
MORE = ("checkpoint", "world", "seek")


def main() -> int:
    """Run them, and tell which targets were missed."""
    failed, began = [], time.monotonic()
    options = [option for option in sys.argv[1:] if option != "--more"]
    for name in SCRIPTS if options == sys.argv[1:] else MORE:
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *options], check=False)
        print(f"-- {name} took {time.monotonic() - start:.0f} s\n", flush=True)
        failed += [name] if done.returncode else []
    if results.RESULTS.exists():
        rows = results.target_rows(results.RESULTS.read_text())
        print("\n".join([results.TARGETS_HEAD, *rows]))
    print(f"{time.monotonic() - began:.0f} s in all" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
