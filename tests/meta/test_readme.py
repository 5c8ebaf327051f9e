"""The README is true: its code runs, its links exist, its commands are there."""

from __future__ import annotations

import re
from pathlib import Path

from ..forked import Script

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_the_code_in_the_readme_runs(tmp_path):
    """All Python blocks, in order, as one program; the functions called test_* are called too."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 2
    calls = [f"{name}()" for name in re.findall(r"^def (test_\w+)", "\n".join(blocks), flags=re.MULTILINE)]
    assert calls
    script = tmp_path / "readme.py"
    script.write_text("\n".join([*blocks, *calls]))
    assert any("the total was reached" in line for line in Script(script, cwd=tmp_path).lines())


def test_the_links_of_the_readme_exist():
    """Every relative link leads to a file."""
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_make_targets_of_the_readme_exist():
    """Every `make target` that the README names is in the Makefile."""
    named = set(re.findall(r"(?:`|\$ )make\s+([a-z]+)", TEXT))
    assert {"demo", "test", "mutants"} <= named
    assert named <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_continuous_integration_calls_the_test_command():
    """CI runs what a newcomer types."""
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()
