"""The promise of this library, kept before your eyes: three runs with different lives end in the same bits.

One run is left alone; one is killed twice (SIGKILL, in the middle of an epoch) and started again; one
is killed and goes on with another number of loader workers. Their final states are compared by digest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = Path("runs/demo")


def launch(root: Path, workers: int, kill_after: int | None = None) -> dict | None:
    """Start the classifier; kill it after an iteration, or wait for the JSON line that ends it."""
    command = [sys.executable, str(HERE / "classify.py"), "--root", str(root), "--workers", str(workers), "--report"]
    root.parent.mkdir(parents=True, exist_ok=True)
    # Loader workers that are orphaned by SIGKILL may complain before they notice and leave.
    errors = root.with_suffix(".stderr")
    with (
        open(errors, "a") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        last, first = "", None
        for line in process.stdout:
            last = line
            if line.startswith("iteration"):
                iteration = int(line.split()[1])
                first = iteration if first is None else first
                if iteration == kill_after:
                    process.kill()
                    break
    started = f"from iteration {first - 1}" if first and first > 1 else "from the start"
    if kill_after is not None:
        print(f"    {started}, {workers} workers: killed after iteration {kill_after}")
        return None
    if process.returncode != 0:
        raise SystemExit(f"the run in {root} failed with exit status {process.returncode}:\n{errors.read_text()}")
    print(f"    {started}, {workers} workers: finished")
    return json.loads(last)


def main() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    begin = time.monotonic()
    results = {}
    print("left alone")
    results["left alone"] = launch(ROOT / "alone", workers=0)
    print("killed twice in the middle of an epoch")
    launch(ROOT / "killed", workers=0, kill_after=37)
    launch(ROOT / "killed", workers=0, kill_after=131)
    results["killed twice"] = launch(ROOT / "killed", workers=0)
    print("killed, and resumed with other numbers of workers")
    launch(ROOT / "workers", workers=2, kill_after=83)
    results["other workers"] = launch(ROOT / "workers", workers=1)

    print(f"\n{'run':<16}{'test accuracy':<16}digest of the final state")
    for name, result in results.items():
        print(f"{name:<16}{result['accuracy']:<16.4f}{result['digest']}")
    equal = len({result["digest"] for result in results.values()}) == 1
    print(f"\nthe three final states are {'equal, bit for bit' if equal else 'NOT EQUAL'}")
    logs = sorted(str(path) for path in ROOT.glob("*/logs/*"))
    print(f"curves:      tensorboard --logdir {ROOT}")
    print("logs:        " + "\n             ".join(logs))
    print(f"checkpoints: {ROOT}/*/checkpoints")
    print(f"{time.monotonic() - begin:.0f} seconds")
    accurate = all(result["accuracy"] > 0.95 for result in results.values())
    sys.exit(0 if equal and accurate else 1)


if __name__ == "__main__":
    main()
