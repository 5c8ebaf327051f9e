"""The guide is true: its code runs in several processes, and ends in the same weights in all of them."""

from __future__ import annotations

import re
from pathlib import Path

from . import jobs

GUIDE = Path(__file__).parents[2] / "examples" / "guides" / "sharded.md"


def test_the_code_of_the_guide_runs_in_two_processes(tmp_path, two):
    """All blocks in order, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    digests = two.run(jobs.follow, "\n".join(blocks), str(tmp_path))
    assert len(set(digests)) == 1
