"""The clock: it decides where a run is cut and how often it is saved, and nothing else."""

from __future__ import annotations

import datetime
import math

import pytest

import helios_fn as hf
from helios_fn import tree

from .test_driver import STEP, config, fresh, loader, run


class Clock:
    """Tells the time that it was told."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return self.now


def timed(seconds: float = 1.0, *, clock: Clock | None = None, step=STEP, **changes) -> hf.Result:
    """A run whose iterations take ``seconds`` each by the clock that it is given."""
    clock = clock or Clock()

    def passing(state, batch):
        clock.now += seconds
        return step(state, batch)

    keywords = {name: changes.pop(name) for name in ("observers", "should_stop") if name in changes}
    return hf.run(passing, fresh(), loader(), config(**changes), clock=clock, **keywords)


class TestLimit:
    """``max_time`` ends a launch in order."""

    @pytest.mark.parametrize("limit", [2.5, 3, datetime.timedelta(seconds=3)])
    def test_it_stops_at_the_first_boundary_beyond(self, tmp_path, limit):
        """The state is saved, the run is not finished, and the same line goes on to the same bits."""
        first = timed(max_time=limit, root=tmp_path)
        assert first.reason is hf.Reason.TIME
        assert not first.reason.finished
        assert first.exit_status == 75
        assert "max_time" in first.message
        assert first.state.counters.iteration == 3
        second = timed(max_time=limit, root=tmp_path)
        assert second.reason is hf.Reason.TOTAL
        assert second.exit_status == 0
        assert tree.equal(second.state, run().state)

    def test_every_launch_makes_progress(self, tmp_path):
        """However long a start takes: otherwise a run could be started again for ever."""
        for done in (1, 2):
            clock = Clock()

            def late(clock=clock):
                clock.now += 50.0
                return fresh()

            result = hf.run(STEP, late, loader(), config(max_time=5.0, root=tmp_path), clock=clock)
            assert result.reason is hf.Reason.TIME
            assert result.state.counters.iteration == done

    def test_a_finished_run_is_finished_whatever_the_time(self, tmp_path):
        """The total and the user's predicate come before the clock."""
        assert timed(max_time=6.0).reason is hf.Reason.TOTAL
        stop = timed(max_time=3.0, should_stop=lambda state: state.counters.iteration == 3)
        assert stop.reason is hf.Reason.SHOULD_STOP

    def test_without_a_limit_the_clock_is_never_read(self):
        """Nothing in a run depends on a clock that was not asked for."""
        clock = Clock()
        timed(clock=clock)
        assert clock.read == 0

    def test_a_bad_state_is_not_what_a_launch_ends_with(self, tmp_path):
        """The policy is applied before the state would be saved."""

        def step(state, batch):
            return STEP(state, (batch[0] * math.nan, batch[1]) if state.counters.iteration == 2 else batch)

        with pytest.raises(hf.RunFailed, match="not finite in iteration 3"):
            timed(step=step, max_time=3.0, root=tmp_path)
        result = timed(step=step, max_time=3.0, root=tmp_path, non_finite="rollback")
        assert result.reason is hf.Reason.TIME
        assert int(result.state.first_bad) < 0


class TestCadence:
    """``checkpoint_every_seconds`` bounds what a crash costs in time."""

    @staticmethod
    def saved(tmp_path, **changes) -> list[int]:
        found = []

        class Told(hf.Observer):
            def on_checkpoint(self, path, state):
                found.append(state.counters.iteration)

        timed(root=tmp_path, total=9, observers=[Told()], **changes)
        return found

    @pytest.mark.parametrize("async_save", [True, False])
    def test_it_saves_when_the_last_save_is_old_enough(self, tmp_path, async_save):
        """At the first boundary beyond; the count starts again with each save, whatever it was due to."""
        assert self.saved(tmp_path / "a", checkpoint_every_seconds=3.0, async_save=async_save) == [0, 3, 6, 9]
        saved = self.saved(tmp_path / "b", checkpoint_every_seconds=3.0, checkpoint_every=4, async_save=async_save)
        assert saved == [0, 3, 4, 7, 8, 9]
        minute = datetime.timedelta(minutes=1)
        assert self.saved(tmp_path / "c", checkpoint_every_seconds=minute, async_save=async_save) == [0, 9]

    def test_a_state_is_saved_once(self, tmp_path):
        """A clock that races does not make two saves of one state."""
        assert self.saved(tmp_path, seconds=10.0, checkpoint_every_seconds=1e-9, checkpoint_every=2) == [*range(10)]

    def test_a_bad_state_is_passed_over(self, tmp_path):
        """It is left to the looks at fixed iterations, so that the clock does not decide what is in the logs."""

        def step(state, batch):
            return STEP(state, (batch[0] * math.nan, batch[1]) if state.counters.iteration == 4 else batch)

        saved = self.saved(
            tmp_path, step=step, checkpoint_every_seconds=1.0, non_finite="rollback", check_finite_every=7
        )
        assert saved == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    def test_a_clock_that_is_set_back_does_no_harm(self, tmp_path):
        """It delays the next save, and nothing else."""
        clock = Clock()

        def step(state, batch):
            if state.counters.iteration == 4:
                clock.now -= 1000.0
            return STEP(state, batch)

        saved = self.saved(tmp_path, step=step, clock=clock, checkpoint_every_seconds=2.0, max_time=7.0)
        assert saved == [0, 2, 4, 9]


@pytest.mark.parametrize("field", ["max_time", "checkpoint_every_seconds"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), (True, TypeError),
     ("1h", TypeError), (datetime.timedelta(0), ValueError)],
)  # fmt: skip
def test_durations_are_checked(field, value, error):
    """By name, with what was got."""
    with pytest.raises(error, match=field):
        config(**{field: value}, root="somewhere")


def test_a_cadence_by_time_needs_a_root():
    """Like the other one."""
    with pytest.raises(ValueError, match="checkpoint_every_seconds needs a folder"):
        config(checkpoint_every_seconds=1.0)


def test_durations_are_recorded_in_seconds():
    """A checkpoint tells the same whichever way they were written."""
    one, other = config(max_time=90.0), config(max_time=datetime.timedelta(minutes=1.5))
    assert one.describe() == other.describe()


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (hf.Reason.TOTAL, 0),
        (hf.Reason.EARLY_STOP, 0),
        (hf.Reason.SHOULD_STOP, 0),
        (hf.Reason.SIGNAL, 75),
        (hf.Reason.TIME, 75),
        (hf.Reason.NON_FINITE, 1),
    ],
)
def test_the_exit_status_tells_a_scheduler_whether_to_start_again(reason, status):
    """Every reason has one: done, try again, or broken."""
    assert hf.Result(None, reason).exit_status == status
    assert len(hf.Reason) == 6
