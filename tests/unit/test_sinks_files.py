"""Logs on disk: each row exactly once, whatever happens in between."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import math
import os
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helios_fn.sinks import CSV, JsonLines, TensorBoard, TextLog, check_sinks, log_name, read_rows
from helios_fn.sinks._append import AppendFile
from helios_fn.sinks._tfrecord import crc32c, frame
from helios_fn.types import Row, RunInfo

LINE_SINKS = [JsonLines, TextLog]
SINKS = [*LINE_SINKS, CSV, TensorBoard]
FOLDERS = (CSV, TensorBoard)


@pytest.fixture(autouse=True, scope="module")
def fast_disk():
    """No test can cut the power, so none needs to wait for the disk; one counts the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


names = st.text(min_size=1, max_size=8)
rows = st.builds(
    Row,
    st.sampled_from(["train", "validation"]),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.dictionaries(names, st.floats(), max_size=4),
    st.floats(0, 4e9),
    st.one_of(st.just({}), st.dictionaries(names, st.floats(), max_size=4)),
)


def row(iteration: int) -> Row:
    """The row that the run writes at ``iteration``: a pure function, as the resume law demands."""
    kind = "validation" if iteration % 5 == 4 else "train"
    metrics = {"loss": 1 / (iteration + 1), "accuracy": math.inf if iteration == 3 else iteration / 7}
    return Row(kind, iteration, 2 * iteration, iteration // 3, metrics, 1.7e9 + iteration / 3)


def info(folder: Path, start: int = 0, superseded: Path | None = None) -> RunInfo:
    return RunInfo("run", "iteration", 100, 1, None, start, log_dir=folder, superseded=superseded)


def die(sink: Any) -> None:
    """What a kill does to a sink: its descriptor goes, nothing is flushed."""
    for log in logs(sink):
        log._file._file.close()


def logs(sink: Any) -> list[Any]:
    """The parts of a sink that have a file open."""
    return [each for each in (sink._tables.values() if type(sink) is CSV else [sink]) if each._file is not None]


def tear(folder: Path, size: int) -> None:
    """Some bytes of a row at the end of the newest file, as a power failure may leave."""
    logs = [path for path in folder.rglob("*") if path.is_file() and "superseded" not in path.parts]
    if logs:
        with open(max(logs, key=lambda path: path.name), "ab") as file:
            file.write(b'{"kind": "tr'[:size])


def content(folder: Path) -> Any:
    """All that the logs in a folder say, in the words of their readers."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    found |= {path.name: path.read_bytes() for path in folder.glob("csv/*.csv")}
    if (folder / "tensorboard").exists():
        found["scalars"] = scalars(folder / "tensorboard")
        found["records"] = [row for path in sorted((folder / "tensorboard").iterdir()) for row in events(path)]
    return found


def scalars(folder: Path) -> dict[str, list[tuple[float, int, bytes]]]:
    """What the page of TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder)).Reload()
    bits = struct.Struct("<f").pack
    return {
        tag: [(e.wall_time, e.step, bits(e.value)) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def events(path: Path) -> list[bytes]:
    """The rows that one event file holds, checked record by record."""
    from tensorboard.compat.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert data[: 16 + length] == frame(body)
        if Event.FromString(body).HasField("summary"):
            found.append(body)
        data = data[16 + length :]
    return found


def uninterrupted(sink_type: Callable[[], Any], folder: Path, total: int) -> Any:
    sink = sink_type()
    sink.open(info(folder), None)
    for i in range(total):
        sink.write(row(i))
    sink.close()
    return content(folder)


crashes = st.tuples(st.just("crash"), st.sampled_from([0, 0, 0, 1, 3]), st.sampled_from([0, 1, 11]), st.booleans())
actions = st.lists(st.one_of(st.just("write"), st.just("save"), crashes), max_size=24)
LATEST = ("crash", 0, 0, False)
TWICE = ["write", "save", "write", LATEST, "write", "save", "write", LATEST]


def interrupted(sink_type: Callable[[], Any], folder: Path, plan: list[Any], total: int) -> Any:
    """The same rows, with saves and crashes in between; each crash goes back to one of the last saves."""
    sink, i = sink_type(), 0
    sink.open(info(folder), None)
    saves = [(0, sink.flush())]
    for action in plan:
        if action == "write" and i < total:
            sink.write(row(i))
            i += 1
        elif action == "save":
            saves.append((i, json.loads(json.dumps(sink.flush()))))
        elif isinstance(action, tuple):
            _, back, torn, keep = action
            die(sink)
            tear(folder, torn)
            del saves[max(1, len(saves) - back) :]
            i, mark = saves[-1]
            sink = sink_type()
            sink.open(info(folder, i, folder / "superseded" if keep else None), mark)
    for j in range(i, total):
        sink.write(row(j))
    sink.close()
    return content(folder)


@pytest.mark.parametrize("sink_type", [*LINE_SINKS, CSV])
@settings(deadline=None, max_examples=60)
@given(plan=actions)
@example(plan=TWICE)
def test_lines_are_those_of_the_uninterrupted_run(sink_type, plan, tmp_path_factory):
    """For any sequence of writes, saves and crashes, the file is the uninterrupted one, byte for byte."""
    once, often = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("often")
    assert interrupted(sink_type, often, plan, 12) == uninterrupted(sink_type, once, 12)


@settings(deadline=None, max_examples=30)
@given(plan=actions)
@example(plan=TWICE)
def test_events_are_those_of_the_uninterrupted_run(plan, tmp_path_factory):
    """For any sequence of writes, saves and crashes, the event files together hold each row once, in order."""
    once, often = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("often")
    assert interrupted(TensorBoard, often, plan, 12) == uninterrupted(TensorBoard, once, 12)


@pytest.mark.parametrize("sink_type", SINKS)
def test_a_mark_is_durable(sink_type, tmp_path, monkeypatch):
    """A flush waits for the disk, and only when there is something to wait for."""
    synced: list[int] = []
    sink = sink_type()
    sink.open(info(tmp_path), None)
    sink.write(row(0))
    monkeypatch.setattr(os, "fsync", synced.append)
    for expected in (1, 1, 2):
        if expected == 2:
            sink.write(row(1))
        sink.flush()
        assert synced == [logs(sink)[0]._file._file.fileno()] * expected
    sink.close()
    assert len(synced) == 2


class Killed(BaseException):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a dead process closes nothing
@pytest.mark.parametrize("superseded", [False, True])
@pytest.mark.parametrize("sink_type", SINKS)
def test_a_crash_inside_of_open_does_no_harm(sink_type, superseded, tmp_path, monkeypatch):
    """Killed at any system call of open, a sink that is opened again with its mark ends with the same content."""
    expected = uninterrupted(sink_type, tmp_path / "once", 9)
    for fatal in range(100):
        folder = tmp_path / str(fatal)
        mark = rows_beyond_a_mark(sink_type, folder)
        resumed = info(folder, 2, folder / "superseded" if superseded else None)
        sink = sink_type()
        finished = killed_at(fatal, monkeypatch, lambda sink=sink, r=resumed, mark=mark: sink.open(r, mark))
        die(sink)
        sink = sink_type()
        sink.open(resumed, mark)
        for i in range(2, 9):
            sink.write(row(i))
        sink.close()
        assert content(folder) == expected
        if superseded:
            kept = b"".join(path.read_bytes() for path in (folder / "superseded").rglob("*") if path.is_file())
            assert all(spelled(sink_type, i) in kept for i in range(2, 9))
        if finished:
            assert fatal > 1
            return
    pytest.fail("open never came to an end")


def rows_beyond_a_mark(sink_type: Callable[[], Any], folder: Path) -> Any:
    """A log of nine rows and two starts; the mark returned is that of two rows."""
    sink = sink_type()
    sink.open(info(folder), None)
    for i in range(9):
        if i == 2:
            mark = sink.flush()
        if i == 4:
            sink.open(info(folder, 4), sink.flush())
        sink.write(row(i))
    sink.close()
    return mark


def killed_at(fatal: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> bool:
    """Whether ``action`` got through although its system call number ``fatal`` is its last."""
    calls = 0

    def fragile(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > fatal:
                raise Killed
            return call(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "rename", "unlink", "mkdir"):
            patch.setattr(os, name, fragile(getattr(os, name)))
        try:
            action()
        except Killed:
            return False
        return True


def spelled(sink_type: type, i: int) -> bytes:
    if sink_type is TensorBoard:
        return struct.pack("<f", row(i).metrics["loss"])
    if sink_type is CSV:
        return ",".join([str(i), str(2 * i), str(i // 3), repr(row(i).time)]).encode()
    return sink_type().encode(row(i)).encode()


@settings(deadline=None, max_examples=60)
@given(written=st.lists(rows, max_size=5))
def test_json_lines_round_trip(written, tmp_path_factory):
    """Rows come back bit for bit, and each line is JSON that strict parsers accept."""
    path = tmp_path_factory.mktemp("json") / "rows.jsonl"
    sink = JsonLines(path)
    sink.open(info(path.parent), None)
    for one in written:
        sink.write(one)
    sink.close()
    assert repr(read_rows(path)) == repr(written)
    for line in path.read_text("ascii").splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_readers_leave_out_a_torn_last_line_and_refuse_torn_others(tmp_path):
    """A reader may look while a run writes; nonsense before the end is an error that names the line."""
    path = tmp_path / "metrics.jsonl"
    line = JsonLines().encode(row(1))
    path.write_text(f"{line}\n{line[:20]}")
    assert read_rows(path) == [row(1)]
    path.write_text(f"{line}\n{line[:20]}\n")
    with pytest.raises(ValueError, match="line 2 is not a row"):
        read_rows(path)


@settings(deadline=None, max_examples=40)
@given(written=st.lists(rows.filter(lambda one: one.metrics), min_size=1, max_size=5), stop=st.integers(0, 5))
@example(written=[Row("train", 1, 2, 3, {"time": 0.5, 'a,"b"\r\n': 0.25, "\udc80": 1.0}, 4.0, {"step": 0.1})], stop=1)
def test_tables_round_trip(written, stop, tmp_path_factory):
    """Floats come back bit for bit from a standard reader, under the names of the first row, over a resume too."""
    folder = tmp_path_factory.mktemp("csv")
    first = {}
    written = [one._replace(metrics={**first.setdefault(one.kind, one).metrics, **one.metrics}) for one in written]
    written = [one._replace(observed={}) if one is not first[one.kind] else one for one in written]
    sink, mark = CSV(folder), None
    for at, one in enumerate(written):
        if at in (0, stop):
            sink.open(info(folder, at), mark)
        sink.write(one)
        mark = sink.flush()
    sink.close()
    for kind, one in first.items():
        with open(folder / f"{kind}.csv", encoding="utf-8", newline="") as stream:
            header, *records = csv.reader(stream)
        spelled = [name.encode("utf-8", "backslashreplace").decode() for name in one.metrics]
        taken = ["iteration", "micro_step", "epoch", "time"]
        assert header[: 4 + len(spelled)] == taken + [f"metrics/{name}" if name in taken else name for name in spelled]
        found = [[float(cell) for cell in record[3 : 4 + len(spelled)]] for record in records]
        rows = [row for row in written if row.kind == kind]
        assert repr(found) == repr([[row.time, *(row.metrics[name] for name in one.metrics)] for row in rows])


@settings(deadline=None, max_examples=50)
@given(one=rows)
def test_a_row_is_one_line_of_text(one):
    """No name of a metric breaks a line of the text log."""
    assert len(TextLog().encode(one).splitlines()) == 1


def test_text_lines_read_well():
    """A line holds the time, the kind, the position and the rounded metrics, the loss first."""
    line = TextLog().encode(Row("train", 120, 240, 3, {"gain": 3e-4, "loss": 0.123456789, "norm": math.inf}, 1.7e9))
    assert line[19:] == "  train       iteration 120      epoch 3     loss 0.123457  gain 0.0003  norm inf"
    assert datetime.fromisoformat(line[:19]) == datetime.fromtimestamp(1.7e9)


@pytest.mark.parametrize("sink_type", SINKS)
def test_going_back_keeps_what_is_cut(sink_type, tmp_path):
    """With a superseded folder nothing that was written is lost."""
    sink = sink_type()
    sink.open(info(tmp_path), None)
    sink.write(row(0))
    mark = sink.flush()
    sink.write(row(1))
    sink.close()
    for _ in range(2):  # and going back twice does not overwrite what the first time kept
        sink.open(info(tmp_path, 1, tmp_path / "superseded"), mark)
        sink.write(row(1))
        sink.close()
    kept = [path.read_bytes() for path in (tmp_path / "superseded").rglob("*") if path.is_file()]
    assert sum(spelled(sink_type, 1) in data for data in kept) == 2
    assert not any(spelled(sink_type, 0) in data for data in kept)


@pytest.mark.parametrize("sink_type", SINKS)
@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_rows_removed_by_hand_are_a_warning(sink_type, damage, tmp_path, caplog):
    """A log that lacks durable rows is no reason to stop; later rows are still whole."""
    sink = sink_type()
    sink.open(info(tmp_path), None)
    for i in range(3):
        sink.write(row(i))
    mark = sink.flush()
    sink.close()
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 9)
    with caplog.at_level(logging.WARNING, "helios_fn"):
        sink.open(info(tmp_path, 3), mark)
    assert str(path) in caplog.text
    assert ("is missing" if damage == "missing" else "instead of") in caplog.text
    sink.write(row(3))
    sink.close()
    if sink_type is JsonLines:
        assert read_rows(path) == ([row(3)] if damage == "missing" else [row(0), row(1), row(3)])
    elif sink_type is TensorBoard:
        assert [step for _, step, _ in scalars(tmp_path / "tensorboard")["train/loss"]][-1] == 3


@pytest.mark.parametrize("sink_type", SINKS)
def test_a_fresh_start_sets_an_earlier_log_aside(sink_type, tmp_path, caplog):
    """Two runs given the same path neither mix nor destroy each other's rows; strangers' files stay."""
    path = tmp_path / "log"
    if sink_type is TensorBoard:
        path.mkdir()
        (path / "events.out.tfevents.123.other").write_text("theirs")
    for i in range(3):
        sink = sink_type(path)
        sink.open(info(tmp_path), None)
        sink.write(row(i))
        sink.close()
    places = ["log/train.csv.1", "log/train.csv.2", "log/train.csv"] if sink_type is CSV else ["log.1", "log.2", "log"]
    for i, place in enumerate(places):
        files = [tmp_path / place] if (tmp_path / place).is_file() else list((tmp_path / place).iterdir())
        data = b"".join(file.read_bytes() for file in files)
        assert [spelled(sink_type, j) in data for j in range(3)] == [j == i for j in range(3)]
        assert (b"theirs" in data) == (sink_type is TensorBoard and place == "log")
    assert places[1] in caplog.text


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("sink_type", SINKS)
def test_runs_that_share_a_path_in_turns_keep_all_rows(sink_type, keep, tmp_path, caplog):
    """A resume that finds another run's log at its path sets it aside, and begins a new one."""
    path = tmp_path / "shared" / "log"
    marks: list[Any] = [None, None]
    for turn in range(6):
        who, sink = turn % 2, sink_type(path)
        caplog.clear()
        sink.open(info(tmp_path, turn, tmp_path / "superseded" if keep else None), marks[who])
        if turn < 5:  # where the other run has left an empty table, no line tells whose it is
            assert ("of another run" in caplog.text) == (sink_type is not TensorBoard and turn >= 2)
        sink.write(row(turn))
        marks[who] = sink.flush()
        sink.close()
    data = b"".join(found.read_bytes() for found in tmp_path.rglob("*") if found.is_file())
    assert all(data.count(spelled(sink_type, turn)) == 1 for turn in range(6))


@pytest.mark.parametrize("sink_type", SINKS)
def test_a_start_without_rows_leaves_the_log_as_it_is(sink_type, tmp_path):
    """Running a finished run again, however often, adds no file and changes no mark."""
    sink = sink_type()
    sink.open(info(tmp_path), None)
    sink.write(row(0))
    mark = sink.flush()
    sink.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        sink = sink_type()
        sink.open(info(tmp_path, 1), mark)
        assert sink.flush() == mark
        sink.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_an_error_of_open(tmp_path, monkeypatch):
    """Also where the first file begins later."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(PermissionError, match="cannot write here"):
        TensorBoard(tmp_path).open(info(tmp_path), None)


def test_the_default_places_are_in_the_log_folder(tmp_path):
    """Folders are created, and names of sinks keep two of a kind apart."""
    folder = tmp_path / "logs" / "deep"
    sinks = [JsonLines(), JsonLines(name="more"), TextLog(), TensorBoard(), CSV()]
    check_sinks(sinks)
    for sink in sinks:
        sink.open(info(folder), None)
        sink.close()
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "more.jsonl", "run.log", "csv", "tensorboard"}


@pytest.mark.parametrize("sink_type", SINKS)
def test_paths_are_checked_before_the_first_row(sink_type, tmp_path):
    """A path that cannot be written is an error of open, which names sink, path and remedy."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "log", tmp_path / "folder"):
        if path.name == "folder" and sink_type not in FOLDERS:
            path.mkdir()
            (path / "inside").touch()
        elif path.name == "folder":
            path.touch()
        with pytest.raises(OSError, match=r"cannot write here.*give it another path.*") as caught:
            sink_type(path).open(info(tmp_path), None)
        assert caught.value.filename == str(path)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
    with pytest.raises(ValueError, match="no place to write to: give it a path, or give the run a root"):
        sink_type().open(info(tmp_path)._replace(log_dir=None), None)


@pytest.mark.parametrize("sink_type", SINKS)
def test_misuse_is_explained(sink_type, tmp_path):
    """Writing before opening, a bad name and another sink's mark are errors that say so."""
    sink = sink_type()
    with pytest.raises(ValueError, match="is not open"):
        sink.write(row(0))
    with pytest.raises(ValueError, match="is not open"):
        sink.flush()
    sink.close()
    with pytest.raises(ValueError, match="cannot name a log"):
        sink_type(name="../x")
    wrong = [
        {"offset": -1, "first": 0},
        {"offset": 0},
        {"offset": "0", "first": 0},
        {"files": {"../../x": 3}},
        {"files": 3},
        {"files": {}},
        7,
        [],
        {},
    ]
    for mark in wrong + ([{"offset": 0, "first": 0}] if sink_type is TensorBoard else [{"files": {}, "iteration": 0}]):
        with pytest.raises(ValueError, match="was another kind of sink given this name"):
            sink.open(info(tmp_path), mark)


def test_sinks_of_one_run_must_differ(tmp_path):
    """Two sinks of one name or path, and things that are no sinks, are refused."""
    check_sinks([JsonLines(tmp_path / "a"), JsonLines(tmp_path / "b", name="b"), TensorBoard()])
    with pytest.raises(ValueError, match="two sinks are named 'metrics'"):
        check_sinks([JsonLines(tmp_path / "a"), JsonLines(tmp_path / "b")])
    with pytest.raises(ValueError, match="as another sink does"):
        check_sinks([JsonLines(tmp_path / "a"), TextLog(tmp_path / "x" / ".." / "a")])
    with pytest.raises(TypeError, match=r"takes instances, got the class JsonLines: write JsonLines\(\)"):
        check_sinks([JsonLines])
    with pytest.raises(TypeError, match="it lacks open, write, flush, close"):
        check_sinks([print])


def test_a_full_disk_neither_loses_nor_doubles_a_row(tmp_path, monkeypatch):
    """Bytes that the disk refused go first when it takes bytes again, and no mark runs ahead of them."""
    file = AppendFile(tmp_path / "log")
    raw, room = file._file, 0

    class Disk:
        closed = False
        fileno, close = raw.fileno, raw.close

        def write(self, data: bytes) -> int:
            nonlocal room
            if not room:
                raise OSError(errno.ENOSPC, "no space left on device")
            taken = raw.write(bytes(data[:room]))
            room -= taken
            return taken

    file._file = Disk()  # type: ignore[assignment]
    room = 4
    with pytest.raises(OSError, match="no space"):
        file.write(b"first\n")
    with pytest.raises(OSError, match="no space"):
        file.flush()
    room = 100
    file.write(b"second\n")
    assert file.flush() == len(b"first\nsecond\n")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_a_watching_tensorboard_drops_what_was_cut(tmp_path):
    """A reader that saw rows beyond the mark shows each step once after the resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard()
    sink.open(info(tmp_path), None)
    sink.write(row(0))
    mark = sink.flush()
    for i in (1, 2, 3):
        sink.write(row(i))
    watcher = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(watcher.Scalars("train/loss")) == 4
    die(sink)
    sink = TensorBoard()
    sink.open(info(tmp_path), mark)  # the mark alone says where to go on: a rollback has no other start
    for i in (1, 2):
        sink.write(row(i))
    assert [event.step for event in watcher.Reload().Scalars("train/loss")] == [0, 1, 2]
    sink.close()


def test_crc32c_is_the_published_one():
    """Check values of RFC 3720, appendix B.4, and of the CRC catalogue."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


@settings(deadline=None, max_examples=50)
@given(
    data=st.binary(max_size=40)
    | (st.integers(500, 530) | st.integers(1500, 1600) | st.just(300_000)).map(
        lambda n: bytes(i * i % 251 for i in range(n))
    )
)
def test_records_are_those_of_tensorboard(data):
    """Framing agrees with TensorBoard's own writer for data of any length."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    RecordWriter(stream).write(data)
    assert frame(data) == stream.getvalue()


def test_names_of_log_folders():
    """The documented form, in English whatever the machine speaks, and unique."""
    now = datetime(2026, 11, 21, 14, 3, 59)
    assert log_name("digits", now) == "digits_Nov21_14-03-59"
    taken = ["digits_Nov21_14-03-59", "digits_Nov21_14-03-59_2"]
    assert log_name("digits", now, taken) == "digits_Nov21_14-03-59_3"
    assert log_name("digits", datetime(2026, 5, 2), taken) == "digits_May02_00-00-00"
