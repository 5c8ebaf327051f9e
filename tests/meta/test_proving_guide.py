"""The guide "Prove it": its code runs, and what it shows as printed is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helios_fn.testing.catalogue import LAWS

from ..forked import Script

GUIDE = Path(__file__).parents[2] / "examples/guides/proving.md"
ENTRY = Path(__file__).parents[2] / "helios_fn/testing/entry"
_NUMBER = re.compile(r"[-+]?\b\d[\d.,]*(?:e[-+]?\d+)?\b")


def blocks() -> list[tuple[str, str, str]]:
    """Language, what stands behind it, and the text of each block."""
    return re.findall(r"^```(\S*) *(.*)\n((?:.*\n)*?)```$", GUIDE.read_text(), flags=re.MULTILINE)


def program(folder: Path, *, slow: bool) -> list[str]:
    """The blocks as one program; those that are files are written, and pytest is called in the same process.

    What an installed helios_fn adds to pytest is named instead: what is tested need not be what is installed.
    """
    parts = [
        "import os, pytest, sys; os.environ.pop('HELIOS_FN_PROFILE', None); os.environ.pop('CI', None)",
        f"sys.path.insert(0, {str(ENTRY)!r}); os.environ['PYTEST_PLUGINS'] = '_helios_fn_pytest'",
    ]
    for language, options, text in blocks():
        if options.startswith("file="):
            folder.joinpath(options.removeprefix("file=")).write_text(text)
        elif language == "python" and (slow or options != "slow"):
            parts.append(text)
        elif language == "console":
            arguments = text.splitlines()[0].removeprefix("$ python -m pytest ").split()
            parts.append(f"if __name__ == '__main__':\n    assert pytest.main({arguments!r}) == 0")
    return parts


def plain(text: str) -> str:
    return " ".join(_NUMBER.sub("#", text).split())


def printed(folder: Path, *, slow: bool) -> str:
    script = folder / "guide.py"
    script.write_text("\n".join(program(folder, slow=slow)))
    return plain("\n".join(Script(script, cwd=folder).lines()))


def test_the_guide_prints_what_it_shows(tmp_path):
    """All blocks in order; what they show agrees but for numbers and line ends, in the same order."""
    output = printed(tmp_path, slow=False)
    for language, _, text in blocks():
        if language in ("text", "console"):
            shown = text if language == "text" else text.partition("\n")[2]
            for piece in filter(None, map(plain, shown.split("..."))):
                assert piece in output
                output = output.partition(piece)[2]


def test_the_guide_lists_all_laws():
    """In the words of the laws themselves, each by the name that the marker and the command know."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| `", GUIDE.read_text(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == [*LAWS]
    for name, told in rows:
        words = LAWS[name].__doc__.removesuffix(".")
        assert told == words[0].lower() + words[1:]


@pytest.mark.soak
def test_the_guide_runs_with_real_processes(tmp_path):
    """The laws over processes that are killed, and over several that share the work."""
    printed(tmp_path, slow=True)
