"""The README and the guides are true: their code runs, their links exist, their commands are there."""

from __future__ import annotations

import functools
import inspect
import re
import runpy
import shutil

import pytest

import helios_fn as hf

from ..documents import GUIDES, LANGUAGES, README, ROOT, agrees, blocks_of, check_names, commands_of, execute, run
from ..forked import Script

TEXT = README.read_text()
DOCUMENTS = [README, *GUIDES]
# These are run by tests/world/test_sharded_guide.py, in several processes, and by test_proving_guide.py.
ELSEWHERE = {"sharded", "proving"}
ALONE = [path for path in GUIDES if path.stem not in ELSEWHERE and blocks_of(path.read_text())]


def name_of(path):
    return path.stem


def test_the_code_in_the_readme_runs(tmp_path):
    """All Python blocks, in order, as one program; the functions called test_* are called too."""
    assert "def test_" in TEXT
    assert "the total was reached" in "\n".join(run(README, tmp_path, consoles=False))


@pytest.mark.parametrize("path", ALONE, ids=name_of)
def test_a_guide_runs(tmp_path, path):
    """All blocks in order, as one program, but for those that take long."""
    run(path, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(
    "path", [path for path in ALONE if any("slow" in b.options for b in blocks_of(path.read_text()))], ids=name_of
)
def test_a_guide_runs_with_its_slow_blocks(tmp_path, path):
    """All blocks in order, as one program."""
    run(path, tmp_path, everything=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_links_exist(path):
    """Every relative link leads to a file, and within this document to a heading."""
    text = path.read_text()
    for link, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", text):
        assert not link or (path.parent / link).exists(), link
        if not link and anchor:
            assert anchor[1:] in headings(text), anchor


def headings(text: str) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_names_in_the_guide_of_migration_exist():
    """Each ``hf.name``, and in ``hf.name(argument=...)`` each argument, wherever it stands."""
    text = (ROOT / "examples/guides/migrating.md").read_text()
    named = re.findall(r"\bhf\.([A-Za-z_.]*\w)(?:\((?:\.\.\., )?(\w+)=)?", text)
    assert len(named) > 100
    for name, argument in named:
        found = functools.reduce(getattr, name.split("."), hf)
        assert not argument or argument in inspect.signature(found).parameters, f"{name}({argument}=)"


def test_the_index_names_every_guide():
    """No guide is to be found by chance only."""
    index = (ROOT / "examples/guides/README.md").read_text()
    linked = set(re.findall(r"\]\(([a-z]+\.md)\)", index))
    assert {path.name for path in GUIDES} - {"README.md"} <= linked


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_block_has_a_language_that_is_known(path):
    """So that none escapes from being run by a slip of the pen."""
    for block in blocks_of(path.read_text()):
        assert block.language in LANGUAGES, block.line
        assert all(re.fullmatch(r"slow|file=[\w./]+", option) for option in block.options), block.line
    assert path.read_text().count("\n```") == 2 * len(blocks_of(path.read_text()))


def test_blocks_that_are_not_run_are_rare():
    """Of all documents together at most three, each with a reason."""
    excuses = [block.excuse for path in DOCUMENTS for block in blocks_of(path.read_text()) if block.excuse]
    assert len(excuses) <= 3, excuses


def test_the_commands_of_the_readme_exist():
    """Every command of its console blocks: targets, files, options."""
    commands = [command for block in blocks_of(TEXT) if block.language == "console" for command in commands_of(block)]
    assert len(commands) > 10
    for command in commands:
        check_names(command.words)


@pytest.mark.soak
def test_the_commands_of_the_readme_print_what_it_shows(tmp_path, monkeypatch):
    """`make demo`, the two commands for experiments, and all that look after runs."""
    monkeypatch.chdir(tmp_path)
    running = Script(ROOT / "examples/demo.py", cwd=tmp_path)
    running.process.join(1200)  # three trainings: a minute on a machine that has nothing else to do
    demo = "\n".join(running.lines())
    for part in ("digits.toml", "digits_parts.py"):
        shutil.copy(ROOT / "examples/experiment" / part, tmp_path)
    shutil.copytree("runs/demo/alone", "damaged")
    victim = next(tmp_path.glob("damaged/checkpoints/*_iter_190/tensors.safetensors"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    for block in blocks_of(TEXT):
        for command in commands_of(block) if block.language == "console" else ():
            if command.words[:2] == ["make", "demo"]:
                assert agrees(f"...{command.expected}...", demo), demo  # the README shows the table alone
            elif command.words[:3] == ["python", "-m", "helios_fn"]:
                status, printed = execute(command.words)
                assert status in (0, 1), printed
                assert not command.expected or agrees(command.expected, printed), f"{command}\n{printed}"


def test_the_make_targets_of_the_readme_exist():
    """Every `make target` that the README names is in the Makefile."""
    named = set(re.findall(r"(?:`|\$ )make\s+([a-z]+)", TEXT))
    assert {"demo", "test", "mutants"} <= named
    for target in named:
        check_names(["make", target])


def test_the_number_of_planted_faults_in_the_readme_is_that_of_the_table():
    """What `make mutants` plants; and it can plant each of them."""
    faults = runpy.run_path(str(ROOT / "tests/mutants/faults.py"))["FAULTS"]
    assert f"plants {len(faults)} faults" in " ".join(TEXT.split())
    misplaced = [fault.name for fault in faults if (ROOT / fault.file).read_text().count(fault.before) != 1]
    assert not misplaced, "their text does not occur exactly once: adapt the faults to the code"


def test_the_continuous_integration_calls_the_test_command():
    """CI runs what a newcomer types."""
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()


def test_output_agrees_up_to_numbers_spaces_and_ellipses():
    """What a console block shows is compared with what is printed, and not with something like it."""
    assert agrees("loss   0.25\n...\nequal: 61 leaves", "loss 0.26\nmore\nequal:  7 leaves\n")
    assert not agrees("equal: 61 leaves", "equal: 61 leaves\nand more")
    assert not agrees("equal", "unequal")
    assert agrees("loss  ▁▂▃", "loss  █▂")


def test_the_figures_of_the_guide_to_speed_are_those_of_the_benchmarks():
    """Each row names a target of bench/RESULTS.md and the benchmark that measures it; figures agree but for noise."""
    results = (ROOT / "bench/RESULTS.md").read_text()
    rows = re.findall(
        r"^\| (.+) \| ([\d.]+) \| `python -m bench\.(\w+)` \|$", (GUIDES[0].parent / "speed.md").read_text(), re.M
    )
    assert len(rows) > 12
    for what, figure, benchmark in rows:
        section = results.partition(f"<!-- section {benchmark} -->")[2].partition("<!-- end")[0]
        found = re.search(rf"^\| {re.escape(what)} \| [^|]* \| ([\d.]+)", section, flags=re.M)
        assert found, (what, benchmark)
        assert float(figure) == pytest.approx(float(found[1]), rel=0.25), what
