"""The examples run, keep their promises, and stay short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(cwd: Path, name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_newcomers_script_is_at_most_twenty_lines_and_resumes(tmp_path):
    """The reference job fits on a slide, reports its progress, and running it again trains nothing more."""
    lines = [line for line in (EXAMPLES / "newcomer.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 20
    run(tmp_path, "newcomer.py")
    checkpoints = sorted((tmp_path / "runs/newcomer/checkpoints").iterdir())
    assert len(checkpoints) == 4
    assert list((tmp_path / "runs/newcomer/logs").glob("*/tensorboard/*"))
    run(tmp_path, "newcomer.py")
    assert sorted((tmp_path / "runs/newcomer/checkpoints").iterdir()) == checkpoints


@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        ("transformer.py", ["--iterations", "4"], ["--iterations", "6"]),
        ("gan.py", ["--epochs", "1"], ["--epochs", "2"]),
    ],
)
def test_an_example_goes_on_exactly(tmp_path, name, short, long):
    """Stopping early and going on gives the digest of the run in one go (where its schedule allows)."""
    if name == "transformer.py":  # its schedule is as long as the run, so the two lengths are two runs
        run(tmp_path, name, "--root", "a", *short)
        assert (
            run(tmp_path, name, "--root", "a", *short).splitlines()[-1]
            == run(tmp_path, name, "--root", "b", *short).splitlines()[-1]
        )
        return
    run(tmp_path, name, "--root", "a", *short)
    assert (
        run(tmp_path, name, "--root", "a", *long).splitlines()[-1]
        == run(tmp_path, name, "--root", "b", *long).splitlines()[-1]
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_in_about_a_hundred_lines(path):
    """Who wants to copy an example can read it first."""
    assert len(path.read_text().splitlines()) <= 130
