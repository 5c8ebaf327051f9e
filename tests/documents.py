"""Documents as programs: a Markdown file is run from top to bottom, in one namespace and one folder.

What stands behind a block's language says what becomes of it:

- ``python`` is run; ``python slow`` by `make docs` alone; ``python file=train.py`` (or ``toml file=...``) is written to
  that file instead;
- ``console`` holds commands, each behind ``$``, and below a command what it prints. ``...`` stands for anything, a
  number for any number and a curve for any curve, for other machines compute other bits. A comment ``# status 1`` tells
  an exit status other than 0. Commands that take long or reach out (`make`, `pip`, `torchrun`) are not run, but what
  they name must exist;
- a block whose first line says ``# not run: REASON`` is not run. A test keeps these rare.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from helios_fn.cli.main import parser

from . import forked

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "examples/guides").glob("*.md"))
LANGUAGES = {"", "python", "console", "toml", "text", "mermaid", "json"}
_FENCE = re.compile(r"^```(\S*) *(.*)\n((?:.*\n)*?)```$", flags=re.MULTILINE)
_NUMBER = re.compile(r"\b[0-9a-f]{64}\b|[-+]?\b\d[\d.,]*(?:e[-+]?\d+)?\b|[▁▂▃▄▅▆▇█·]+")
_ELSEWHERE = ("make", "pip", "torchrun", "tensorboard", "kill", "git")


class Block(NamedTuple):
    """A fenced block: its language, the words behind it, its text, and the number of its first line."""

    language: str
    options: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the block is."""
        return next((option.removeprefix("file=") for option in self.options if option.startswith("file=")), None)

    @property
    def excuse(self) -> str | None:
        """Why it is not run, if it says so."""
        found = re.match(r"(?:#|//|\$.*#) not run: (.*)", self.text)
        return found[1] if found else None


class Command(NamedTuple):
    """A command of a console block: its words, what stands below it, and the exit status that it tells."""

    words: list[str]
    expected: str
    status: int


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a document, in order."""
    return [
        Block(found[1], tuple(found[2].split()), found[3], text.count("\n", 0, found.start(3)) + 1)
        for found in _FENCE.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a console block."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        told = re.search(r"# status (\d+)", line)
        yield Command(shlex.split(line, comments=True), expected.strip(), int(told[1]) if told else 0)


def program(path: Path, *, everything: bool, consoles: bool) -> str:
    """The document as a Python program whose lines have the numbers that they have in the document."""
    text = path.read_text()
    lines = [""] * (text.count("\n") + 1)
    for block in blocks_of(text):
        if block.excuse is not None:
            continue
        at, here = block.line - 1, "__import__('tests.documents').documents"
        if block.file is not None:
            lines[at] = f"{here}.write({block.file!r}, {block.text!r})"
        elif block.language == "console" and consoles:
            lines[at] = f"{here}.follow({block.text!r}) if __name__ == '__main__' else None"
        elif block.language == "python" and (everything or "slow" not in block.options):
            body = block.text.splitlines()
            lines[at : at + len(body)] = body
    calls = [f"{name}()" for name in re.findall(r"^def (test_\w+)\(\)", "\n".join(lines), flags=re.MULTILINE)]
    return "\n".join([*lines, *calls, ""])


def run(path: Path, folder: Path, *, everything: bool = False, consoles: bool = True) -> list[str]:
    """Run a document in ``folder`` and return what its Python prints. Functions called ``test_*`` are called last.

    Args:
        path: the document.
        folder: where it runs.
        everything: run the blocks that take long, too.
        consoles: run the commands of console blocks.
    """
    script = folder / f"{path.stem}_md.py"
    script.write_text(program(path, everything=everything, consoles=consoles))
    return forked.Script(script, cwd=folder).lines()


def write(name: str, text: str) -> None:
    """What becomes of a block that is a file."""
    Path(name).write_text(text)


def follow(text: str) -> None:
    """Run the commands of a console block in this folder, and compare what they print."""
    for command in commands_of(Block("console", (), text, 0)):
        if is_elsewhere(command.words):
            check_names(command.words)
            continue
        status, printed = execute(command.words)
        where = f"$ {shlex.join(command.words)}\n{printed}"
        assert status == command.status, f"status {status} instead of {command.status} of\n{where}"
        assert not command.expected or agrees(command.expected, printed), f"expected:\n{command.expected}\n\n{where}"


def is_elsewhere(words: list[str]) -> bool:
    """Whether a command is not for a test to run: it takes long, or reaches out, or is an example with its own test."""
    return words[0] in _ELSEWHERE or any(word.startswith("examples/") for word in words)


def check_names(words: list[str]) -> None:
    """That the targets, files and options exist that a command names."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert set(words[1:]) <= targets, words
    if words[:3] == ["python", "-m", "helios_fn"]:
        commands = next(action for action in parser()._actions if action.dest == "command").choices
        assert isinstance(commands, dict)
        assert words[3] in commands, words
        options = {word.partition("=")[0] for word in words[4:] if word.startswith("-")}
        assert options <= set(commands[words[3]]._option_string_actions), words
    files = [ROOT / word for word in words if word.startswith("examples/")]
    for file in files:
        assert file.exists(), words
        if file.suffix == ".py":
            after = words[words.index(str(file.relative_to(ROOT))) + 1 :]
            for option in (word for word in after if word.startswith("--")):
                assert option in file.read_text(), words


def execute(words: list[str]) -> tuple[int, str]:
    """The exit status of a command and all that it prints."""
    if words[0] != "python":
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr
    said = Path(f".{len(list(Path().glob('.*.said')))}.said").absolute()  # hidden from `ls`
    process = forked.CONTEXT.Process(target=_child, args=(words[1:], str(Path.cwd()), str(said)))
    with pytest.MonkeyPatch.context() as patch:
        # Else the process would import the program that starts it: the document.
        patch.delattr(sys.modules["__main__"], "__file__", raising=False)
        process.start()
    process.join(300)
    assert process.exitcode is not None, words
    # A shell reports a signal as 128 and its number.
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode, said.read_text()


def agrees(expected: str, printed: str) -> bool:
    """Whether a text is the expected one but for numbers, spaces, and what ``...`` stands for."""
    pieces = [re.escape(_plain(piece)) for piece in expected.split("...")]
    return re.fullmatch(r"\s?.*?\s?".join(pieces), _plain(printed), flags=re.DOTALL) is not None


def _plain(text: str) -> str:
    return " ".join(_NUMBER.sub("#", text).split())


def _child(words: list[str], cwd: str, said: str) -> None:
    is_module = words[0] == "-m"
    forked.begin(words[1:] if is_module else words, said, said)
    os.chdir(cwd)
    os.environ["COLUMNS"] = "120"
    sys.path[0] = cwd
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
