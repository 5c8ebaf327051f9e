"""The README and the guides are true: their code runs, their links exist, their commands are there."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path

import pytest

import helios_fn as hf

from ..forked import Script

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "examples/guides").glob("*.md"))


def python_of(text: str) -> list[str]:
    """All Python blocks, in order."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run(folder: Path, blocks: list[str]) -> str:
    """What the blocks print as one program."""
    script = folder / "blocks.py"
    script.write_text("\n".join(blocks))
    return "\n".join(Script(script, cwd=folder).lines())


def test_the_code_in_the_readme_runs(tmp_path):
    """All Python blocks, in order, as one program; the functions called test_* are called too."""
    blocks = python_of(TEXT)
    assert len(blocks) >= 2
    calls = [f"{name}()" for name in re.findall(r"^def (test_\w+)", "\n".join(blocks), flags=re.MULTILINE)]
    assert calls
    assert "the total was reached" in run(tmp_path, [*blocks, *calls])


# These are run by tests/world/test_sharded_guide.py, in several processes, and by test_proving_guide.py.
@pytest.mark.parametrize(
    "path", [path for path in GUIDES if path.stem not in ("sharded", "proving")], ids=lambda path: path.stem
)
def test_the_code_in_a_guide_runs(tmp_path, path):
    """All Python blocks, in order, as one program."""
    blocks = python_of(path.read_text())
    assert blocks
    run(tmp_path, blocks)


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=lambda path: path.stem)
def test_the_links_exist(path):
    """Every relative link leads to a file."""
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links or path.stem != "README"
    for link in links:
        assert (path.parent / link).exists(), link


def test_the_names_in_the_guide_of_migration_exist():
    """Each ``hf.name``, and in ``hf.name(argument=...)`` each argument, wherever it stands."""
    text = (ROOT / "examples/guides/migrating.md").read_text()
    named = re.findall(r"\bhf\.([A-Za-z_.]*\w)(?:\((?:\.\.\., )?(\w+)=)?", text)
    assert len(named) > 100
    for name, argument in named:
        found = functools.reduce(getattr, name.split("."), hf)
        assert not argument or argument in inspect.signature(found).parameters, f"{name}({argument}=)"


def test_the_make_targets_of_the_readme_exist():
    """Every `make target` that the README names is in the Makefile."""
    named = set(re.findall(r"(?:`|\$ )make\s+([a-z]+)", TEXT))
    assert {"demo", "test", "mutants"} <= named
    assert named <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_continuous_integration_calls_the_test_command():
    """CI runs what a newcomer types."""
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()
