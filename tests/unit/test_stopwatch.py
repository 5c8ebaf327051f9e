"""What rows observe: where the time went, how fast it was; and that nothing of it reaches the training."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import helios_fn as hf
from helios_fn.driver import stopwatch
from helios_fn.driver.stopwatch import Stopwatch, samples
from helios_fn.sinks import TIME_SPLIT, JsonLines, read_rows
from helios_fn.types import Delivery


class Pair(NamedTuple):
    x: Any
    y: Any


RATES = {"samples_per_second", "micro_batches_per_second"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told."""
    now = SimpleNamespace(time=50.0)
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: now.time)
    return now


def delivery(*sizes: int) -> Delivery:
    return Delivery(tuple((torch.zeros(size, 2), torch.zeros(())) for size in sizes), 0, 4, hf.Cursor())


def test_every_second_belongs_to_one_part(clock):
    """Waiting, stepping, and what is timed around them; the rest is other. Reading starts anew."""
    watch = Stopwatch()
    watch.restart(100)
    for wait, step in ((1, 2), (3, 4)):
        watch.waits()
        clock.time += wait
        watch.received(delivery(8, 4))
        clock.time += step
        watch.stepped()
        clock.time += 0.5
    for part, seconds in (("validation", 5), ("checkpoint", 6), ("step", 7)):
        watch.timed(part, lambda seconds=seconds: setattr(clock, "time", clock.time + seconds))
    found = watch.read(108)
    assert {part: found[part] for part in TIME_SPLIT} == {
        "data_wait": 4, "step": 13, "validation": 5, "checkpoint": 6, "other": 1,
    }  # fmt: skip
    assert found["micro_batches_per_second"] == 8 / 29
    # This process had 24 samples in 4 of the 8 micro-batches.
    assert found["samples_per_second"] == pytest.approx(48 / 29)
    assert found["peak_memory"] > 1e6
    clock.time += 1
    found = watch.read(108)
    assert {part: found[part] for part in TIME_SPLIT} == {
        "data_wait": 0, "step": 0, "validation": 0, "checkpoint": 0, "other": 1,
    }  # fmt: skip


def test_the_time_of_what_fails_counts_too(clock):
    watch = Stopwatch()

    def fail() -> None:
        clock.time += 3
        raise KeyError

    with pytest.raises(KeyError):
        watch.timed("validation", fail)
    assert watch.read(0)["validation"] == 3


def test_what_cannot_be_known_is_left_out(clock):
    """No samples per second where a batch has no leading dimension, and no rate where no time has passed."""
    watch = Stopwatch()
    assert not RATES & set(watch.read(0))
    watch.received(Delivery((torch.zeros(()),), 0, 1, hf.Cursor()))
    watch.received(delivery(8))
    clock.time += 1
    assert RATES & set(watch.read(2)) == {"micro_batches_per_second"}
    watch.received(delivery())  # a process without a share of a ragged tail
    clock.time += 1
    assert RATES & set(watch.read(2)) == {"micro_batches_per_second"}


def test_samples_are_counted_by_the_first_leading_dimension():
    """In any nesting, whatever else is in the batch."""
    x = torch.zeros(7, 2)
    for batch in (
        x,
        (x,),
        [3, "id", x],
        {"n": torch.tensor(1), "x": [x]},
        Pair(torch.tensor(0), x),
        (("a",), {"x": x}),
    ):
        assert samples(batch) == 7
    for batch in ((), "text", 3, {"a": torch.tensor(1)}, [[]], None):
        assert samples(batch) is None


def job(root, delay: float = 0.0, **fields):
    """A run of eight iterations over batches of three, with whatever is observed."""
    state = hf.init_state({"w": torch.zeros(2)})

    def step(state, batch):
        time.sleep(delay)
        w = state.params["w"] + batch[0].mean()
        return state.replace(params={"w": w}, metrics={"w": w.sum()})

    data = torch.utils.data.TensorDataset(torch.arange(12.0))
    cfg = hf.RunConfig(unit="iteration", total=8, root=root, progress=False, **fields)
    validate = None if cfg.validate_every is None else lambda state: {"one": 1.0}
    return hf.run(step, state, hf.Loader(data, 3), cfg, sinks=[JsonLines()], validate=validate)


def test_rows_of_training_observe_and_those_of_validation_do_not(tmp_path):
    """Parts and rates come in every train row, and are read back as written."""
    job(tmp_path, delay=0.002, log_every=2, validate_every=3, checkpoint_every=3)
    (path,) = tmp_path.glob("logs/*/metrics.jsonl")
    rows = read_rows(path)
    assert [(row.kind, row.iteration) for row in rows if not row.observed] == [("validation", 3), ("validation", 6)]
    for row in rows:
        if row.observed:
            assert {*TIME_SPLIT, *RATES, "peak_memory"} == set(row.observed)
            assert all(math.isfinite(value) and value >= 0 for value in row.observed.values())
            assert row.observed["samples_per_second"] == pytest.approx(3 * row.observed["micro_batches_per_second"])
            assert row.observed["step"] >= 0.004
    assert [row.observed["validation"] > 0 for row in rows if row.observed] == [False, True, False, True]


def test_rows_without_observations_are_still_read(tmp_path):
    """A log of an earlier version has no field ``observed``."""
    line = '{"kind":"train","iteration":1,"micro_step":2,"epoch":0,"metrics":{"loss":0.5},"time":3.0}\n'
    (tmp_path / "old.jsonl").write_text(line)
    assert read_rows(tmp_path / "old.jsonl") == [hf.Row("train", 1, 2, 0, {"loss": 0.5}, 3.0)]
    assert JsonLines().encode(hf.Row("train", 1, 2, 0, {"loss": 0.5}, 3.0)) + "\n" == line
