"""Progress: what it looks like, and that it leaves a terminal as it found it."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.sinks import Progress, console
from helios_fn.sinks._bars import ASCII, Snapshot, duration, pace_of, remaining, render, render_plain, speed
from helios_fn.types import Counters, Cursor, Reason, Row, RunInfo

ITERATIONS = RunInfo("digits", "iteration", 1000, 4, 50)
EPOCHS = RunInfo("digits", "epoch", 5, 4, 50)
TRAIN = {"loss": 0.123456, "learning_rate": 3e-4}
VALIDATION = {"loss": 0.25, "accuracy": math.nan}


def state(iteration: int, epoch: int, batch: int) -> Any:
    return SimpleNamespace(cursor=Cursor(0, epoch, batch), counters=Counters(iteration, 4 * iteration))


class Screen:
    """A terminal of a few lines of code: it knows the codes that Progress uses, and no other."""

    def __init__(self, data: str) -> None:
        self.lines, self.row, self.column, self.wraps = [""], 0, 0, True
        for code in re.findall(r"\x1b\[\??\d*[A-Za-z]|.", data, re.DOTALL):
            self.take(code)

    def take(self, code: str) -> None:
        line = self.lines[self.row]
        if code == "\r":
            self.column = 0
        elif code == "\n":  # as a terminal's driver passes it on
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif code in ("\x1b[K", "\x1b[J"):
            self.lines[self.row] = line[: self.column]
            if code == "\x1b[J":
                del self.lines[self.row + 1 :]
        elif code in ("\x1b[?7l", "\x1b[?7h"):
            self.wraps = code == "\x1b[?7h"
        elif code.startswith("\x1b["):
            assert code.endswith("A"), code
            self.row -= int(code[2:-1])
        else:
            self.lines[self.row] = line[: self.column].ljust(self.column) + code + line[self.column + 1 :]
            self.column += 1


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: now.time)
    monkeypatch.delenv("TERM", raising=False)
    return now


def train(progress: Progress, clock: Any, first: int, last: int) -> None:
    """Iterations of 10 ms, 13 per epoch."""
    for iteration in range(first, last + 1):
        clock.time += 0.01
        progress.on_iteration(state(iteration, iteration // 13, iteration % 13 * 4))


def test_the_iteration_unit_has_one_bar():
    assert render(79, Snapshot(ITERATIONS, 250, 0, 0), ASCII) == [
        "iteration   250/1000 ##########------------------------------  25%",
    ]
    assert render(79, Snapshot(ITERATIONS, 250, 1, 3, 100.0, TRAIN, VALIDATION), ASCII) == [
        "iteration   250/1000 #######---------------------  25%   100 it/s  0:00:07 left",
        "train      loss 0.1235  learning_rate 0.0003",
        "validation loss 0.25  accuracy nan",
    ]


OBSERVED = {
    "samples_per_second": 6400.4, "data_wait": 0.3, "step": 0.6, "validation": 0.0, "other": 0.1, "peak_memory": 2.52e9,
}  # fmt: skip


def test_speed_and_what_holds_it_up_have_a_line():
    """Samples per second, the share of time that went by waiting for data, and the peak of memory."""
    snapshot = Snapshot(ITERATIONS, 250, 1, 3, 100.0, TRAIN, observed=OBSERVED)
    assert render(79, snapshot, ASCII)[1:] == [
        "speed      6,400 samples/s  30% waiting for data  peak memory 2.5 GB",
        "train      loss 0.1235  learning_rate 0.0003",
    ]
    assert render(40, snapshot, ASCII)[1] == "speed      6,400 samples/s  ..."
    assert "  speed: 6,400 samples/s, 30% waiting for data, peak memory 2.5 GB  train: " in render_plain(snapshot)
    few = {"samples_per_second": 1.25, "peak_memory": 999.4e6}
    assert pace_of(few) == ["1.2 samples/s", "peak memory 999 MB"]
    assert pace_of({}) == []


def test_the_last_observations_stay_on_the_screen(clock):
    """Rows of validation have none, and do not take them away."""
    terminal = Terminal()
    progress = Progress(terminal, interval=0)
    progress.on_start(ITERATIONS, None)
    progress.on_row(Row("train", 10, 40, 0, TRAIN, 0.0, OBSERVED))
    progress.on_row(Row("validation", 10, 40, 0, VALIDATION, 0.0))
    train(progress, clock, 11, 12)
    progress.on_end(state(12, 0, 48), None)
    lines = Screen(terminal.getvalue()).lines
    assert [line.split()[0] for line in lines if line] == ["iteration", "speed", "train", "validation"]


def test_the_epoch_unit_has_two_bars():
    """The last iteration of an epoch takes what is left, so 50 batches in fours are 13 iterations."""
    assert render(79, Snapshot(EPOCHS, 32, 2, 24, 6.5, TRAIN), ASCII) == [
        "epoch        2/5 ###################---------------------  49%  0:00:05 left",
        "iteration   6/13 ##################----------------------  46%   6.5 it/s",
        "train      loss 0.1235  learning_rate 0.0003",
    ]


def test_at_the_end_both_bars_are_full():
    assert render(60, Snapshot(EPOCHS, 65, 5, 0, 6.5), ASCII) == [
        "epoch        5/5 ######################## 100%  0:00:00 left",
        "iteration  13/13 ######################## 100%   6.5 it/s",
    ]


def test_a_validation_has_a_bar_of_its_own():
    """It stands where the last result stood."""
    assert render(60, Snapshot(EPOCHS, 13, 1, 0, 0, TRAIN, VALIDATION, (3, 12)), ASCII) == [
        "epoch        1/5 #######-------------------------------  20%",
        "iteration   0/13 --------------------------------------   0%",
        "train      loss 0.1235  learning_rate 0.0003",
        "validation  3/12 #########-----------------------------  25%",
    ]
    assert render(60, Snapshot(ITERATIONS, 13, 1, 0, validating=(3, None)), ASCII)[-1] == "validation         3"


def test_without_a_total_there_is_a_count_and_a_speed():
    """Of an endless run nothing can be drawn but the epoch's own bar, and of a stream not that either."""
    endless = ITERATIONS._replace(total=math.inf)
    assert render(60, Snapshot(endless, 250, 0, 0, 2.0), ASCII) == ["iteration  250   2.0 it/s"]
    epochs = EPOCHS._replace(total=math.inf)
    assert render(60, Snapshot(epochs, 250, 3, 10, 2.0), ASCII) == [
        "epoch          3",
        "iteration   3/13 ######---------------------  23%   2.0 it/s",
    ]
    stream = epochs._replace(batches_per_epoch=None)
    lines = render(60, Snapshot(stream, 250, 3, 10, 2.0), ASCII)
    assert [line.split() for line in lines] == [["epoch", "3"], ["iteration", "3", "2.0", "it/s"]]
    assert [remaining(Snapshot(info, 250, 3, 10)) for info in (endless, epochs, stream)] == [None] * 3


def test_a_narrow_terminal_loses_the_tails_then_the_bars_then_the_ends():
    """The loss survives as long as there is room for it alone."""
    snapshot = Snapshot(ITERATIONS, 250, 1, 3, 100.0, {"learning_rate": 0.1, "loss": 1.0})
    assert render(40, snapshot, ASCII) == [
        "iteration   250/1000 ###-----------  25%",
        "train      loss 1  learning_rate 0.1",
    ]
    assert render(24, snapshot, ASCII) == ["iteration   250/1000", "train      loss 1  ..."]
    assert render(21, snapshot, ASCII) == ["iteration   250/1000", "train      loss 1"]
    assert render(15, snapshot, ASCII) == ["iteration   250", "train loss 1"]
    assert render(9, snapshot, ASCII) == ["iteration", "loss 1"]


def test_the_loss_comes_first():
    """Then the others by name, whatever order they come in."""
    snapshot = Snapshot(ITERATIONS, 250, 1, 3, 0.0, {"norm": 2.0, "accuracy": 0.5, "loss": 1.0})
    assert render(60, snapshot, ASCII)[-1] == "train      loss 1  accuracy 0.5  norm 2"
    assert render_plain(snapshot).endswith("train: loss 1 accuracy 0.5 norm 2")


counts = st.integers(0, 10**9)
metrics = st.dictionaries(st.text(max_size=20), st.floats(), max_size=5)
snapshots = st.builds(
    Snapshot,
    st.builds(
        lambda *facts: RunInfo("run", *facts),
        st.sampled_from(["iteration", "epoch"]),
        st.integers(1, 10**9) | st.just(math.inf),
        st.integers(1, 64),
        st.none() | st.integers(1, 10**6),
    ),
    counts,
    counts,
    counts,
    st.floats(0, 1e9),
    metrics,
    metrics,
    st.none() | st.tuples(counts, st.none() | counts),
)


@settings(deadline=None, max_examples=50)
@given(width=st.integers(0, 200), snapshot=snapshots)
def test_any_progress_fits_into_any_width(width, snapshot):
    """No line is too long or has characters that move the cursor, whatever the numbers and names are."""
    for line in render(width, snapshot):
        assert len(line) <= width
        assert line.isprintable()
    assert render_plain(snapshot).isprintable()


def test_numbers_read_well():
    assert [duration(s) for s in (0, 59.9, 3723, 200_000)] == ["0:00:00", "0:00:59", "1:02:03", "2d 7:33:20"]
    assert [speed(r) for r in (0, 0.25, 3.14159, 12345.6)] == ["", "4.0 s/it", "3.1 it/s", "12,346 it/s"]


@pytest.mark.parametrize(("info", "shown"), [(ITERATIONS, "iteration   500/1000"), (EPOCHS, "epoch        2/5")])
def test_a_resumed_run_starts_where_it_was(info, shown, clock):
    """A line and the first drawing give the resumed position; the speed counts only what this process did."""
    stream = Terminal()
    progress = Progress(stream)
    progress.on_start(info._replace(start_iteration=500, start_epoch=2, start_batch=12), None)
    screen = Screen(stream.getvalue())
    assert screen.lines[0] == "digits: going on from iteration 500 (epoch 2, batch 12)"
    assert screen.lines[2].startswith(shown)
    train(progress, clock, 501, 600)
    assert "100 it/s" in "".join(Screen(stream.getvalue()).lines)
    progress.on_end(None, None)


@pytest.mark.parametrize("info", [ITERATIONS._replace(total=65), EPOCHS])
def test_a_finished_run_says_that_it_was(info, clock):
    """No word of going on or ending where nothing is left to do; a run that early stopping ended cannot know before."""
    stream = io.StringIO()
    progress = Progress(stream)
    progress.on_start(info._replace(start_iteration=65, start_epoch=5), None)
    progress.on_end(state(65, 5, 0), Reason.TOTAL)
    assert stream.getvalue().splitlines()[1:] == ["digits was finished already at iteration 65: the total was reached"]
    assert "65/65" in stream.getvalue() or "13/13" in stream.getvalue()
    progress.on_start(info._replace(start_iteration=32, start_epoch=2), None)
    progress.on_end(state(32, 2, 0), Reason.EARLY_STOP)
    progress.on_start(info._replace(start_iteration=32, start_epoch=2), None)
    progress.on_end(state(32, 2, 0), Reason.SIGNAL)
    progress.on_start(info, None)
    progress.on_end(state(0, 0, 0), None)
    words = [line for line in stream.getvalue().splitlines()[2:] if line.startswith("digits")]
    assert [line[:43] for line in words] == [
        "digits: going on from iteration 32 (epoch 2",
        "digits was finished already at iteration 32",
        "digits: going on from iteration 32 (epoch 2",
        "digits ended at iteration 32 after 0:00:00:",
    ]


def test_what_others_print_stays_readable(clock):
    """Printed lines stand above the bars, whole; at the end only they and the last drawing are there."""
    stream = Terminal()
    progress = Progress(stream)
    progress.on_start(EPOCHS, None)
    train(progress, clock, 1, 30)
    stream.write("hello\n")
    train(progress, clock, 31, 40)
    for done in range(1, 5):
        clock.time += 1
        progress.on_validation_batch(done, 4)
    assert any(line.startswith("validation") for line in Screen(stream.getvalue()).lines)
    progress.on_validation(state(40, 3, 4))
    assert not any(line.startswith("validation") for line in Screen(stream.getvalue()).lines)
    progress.on_row(Row("train", 40, 160, 3, TRAIN, 0.0))
    stream.write("a warning\n")
    train(progress, clock, 41, 65)
    progress.on_end(state(65, 5, 0), Reason.TOTAL)
    screen = Screen(stream.getvalue())
    starts = ["hello", "a warning", "epoch        5/5", "iteration  13/13", "train      loss", "digits ended", ""]
    assert [line[: len(start)] for line, start in zip(screen.lines, starts, strict=True)] == starts
    assert screen.lines[-2] == "digits ended at iteration 65 after 0:00:04: the total was reached"
    assert (screen.row, screen.column, screen.wraps) == (6, 0, True)


def test_a_failure_leaves_the_terminal_clean(clock):
    """The traceback begins on a line of its own, below the last drawing."""
    stream = Terminal()
    progress = Progress(stream)
    progress.on_start(ITERATIONS, None)
    train(progress, clock, 1, 30)
    progress.on_validation_batch(1, 10)
    progress.on_end(state(30, 0, 0), None)
    screen = Screen(stream.getvalue())
    assert [line[:20] for line in screen.lines] == ["iteration    30/1000", ""]
    assert (screen.row, screen.column, screen.wraps) == (1, 0, True)
    progress.on_end(None, None)
    Progress(stream).on_end(None, None)  # never started
    assert Screen(stream.getvalue()).lines == screen.lines


def test_elsewhere_lines_come_now_and_then(clock):
    """A pipe gets plain lines, one in five seconds, and the last."""
    stream = io.StringIO()
    progress = Progress(stream)
    progress.on_start(EPOCHS, None)
    for iteration in range(1, 66):
        clock.time += 0.25
        progress.on_iteration(state(iteration, iteration // 13, iteration % 13 * 4))
        progress.on_row(Row("train", iteration, 4 * iteration, 0, {"loss": iteration / 8}, 0.0))
    progress.on_end(state(65, 5, 0), Reason.TOTAL)
    assert stream.getvalue().splitlines() == [
        "epoch 1/5  iteration 10/13  0:00:10 left  4.0 it/s  train: loss 2.75",
        "epoch 3/5  iteration 4/13  0:00:05 left  4.0 it/s  train: loss 5.25",
        "epoch 4/5  iteration 11/13  0:00:00 left  4.0 it/s  train: loss 7.75",
        "epoch 5/5  iteration 13/13  0:00:00 left  4.0 it/s  train: loss 8.125",
        "digits ended at iteration 65 after 0:00:16: the total was reached",
    ]


def test_a_dead_stream_does_not_touch_the_training(clock, monkeypatch):
    """Neither a closed stream, nor a terminal that hung up, nor a process without any, raises."""

    class HungUp(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None)
    for stream in (HungUp(), closed, None):
        progress = Progress(stream)
        progress.on_start(EPOCHS, None)
        train(progress, clock, 1, 50)
        progress.on_end(None, Reason.SIGNAL)


def test_terminals_that_know_ascii_only_get_it(clock):
    """Neither bars nor names of metrics need an encoding that the stream lacks."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    progress = Progress(stream)
    progress.on_start(ITERATIONS, None)
    progress.on_row(Row("train", 1, 1, 0, {"µ": 1.0}, 0.0))
    progress.on_end(state(500, 0, 0), Reason.TOTAL)
    assert "####----" in raw.getvalue().decode("ascii")
    assert "train      ? 1" in raw.getvalue().decode("ascii")


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    progress = Progress(stream)
    progress.on_start(ITERATIONS, None)
    progress.on_end(state(500, 0, 0), None)
    assert stream.getvalue() == "iteration 500/1000\n"


def test_intervals_are_checked():
    with pytest.raises(ValueError, match="interval must not be negative, got nan"):
        Progress(interval=math.nan)
    with pytest.raises(ValueError, match="plain_interval must not be negative"):
        Progress(plain_interval=-1)


def test_the_clock_is_read_often_enough(clock):
    """When a fast run turns slow, the drawing lags by no more than 32 iterations."""
    stream = Terminal()
    progress = Progress(stream)
    progress.on_start(ITERATIONS._replace(total=10**9), None)
    for iteration in range(10_000):
        clock.time += 1e-6
        progress.on_iteration(state(iteration, 0, 0))
    before = len(stream.getvalue())
    for iteration in range(32):
        clock.time += 1.0
        progress.on_iteration(state(10_000 + iteration, 0, 0))
    assert len(stream.getvalue()) > before
    for iteration in range(10):  # and from then on each slow iteration is shown
        before = len(stream.getvalue())
        clock.time += 1.0
        progress.on_iteration(state(20_000 + iteration, 0, 0))
        assert len(stream.getvalue()) > before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("info", [ITERATIONS, EPOCHS])
@pytest.mark.parametrize("columns", [100, 30])
def test_on_a_real_terminal_the_output_ends_clean(info, columns, tmp_path: Path, monkeypatch):
    """Through a pseudo-terminal of a given width: every line fits, and the cursor ends at a line's start."""
    import fcntl
    import struct
    import termios

    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    chunks: list[bytes] = []

    def read() -> None:
        while chunk := os.read(master, 65536):
            chunks.append(chunk)
            if b"the end\r\n" in b"".join(chunks):  # it may come in pieces
                return

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w", encoding="utf-8") as stream:
        progress = Progress(stream, interval=0)
        progress.on_start(info, None)
        for iteration in range(1, 66):
            progress.on_iteration(state(iteration, iteration // 13, iteration % 13 * 4))
            progress.on_row(Row("train", iteration, 4 * iteration, 0, TRAIN, 0.0))
        progress.on_end(state(65, 5, 0), Reason.TOTAL)
        stream.write("the end\n")
        stream.flush()
        reader.join()
    os.close(master)
    screen = Screen(b"".join(chunks).decode())
    bars = ["iteration "] if info is ITERATIONS else ["epoch     ", "iteration "]
    assert [line[:10] for line in screen.lines] == [*bars, "train     ", "digits end", "the end", ""]
    assert all(len(line) < columns for line in screen.lines if not line.startswith("digits"))
    assert (screen.column, screen.wraps) == (0, True)
