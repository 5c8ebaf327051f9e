"""What the driver does when the code around the step misbehaves: nothing is lost, nothing is hidden."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import weakref

import pytest
import torch

import helios_fn as hf
from helios_fn import tree

from .test_driver import OPTIMIZER, STEP, X, Y, config, fresh, loader, run


class Raising(hf.Observer):
    """Raises once, in one event at one iteration."""

    def __init__(self, event: str, iteration: int = 0, error: BaseException | None = None) -> None:
        self.left = 1
        error = error or OSError(f"in {event}")

        def handler(*values):
            state = next((value for value in values if isinstance(value, hf.TrainState)), None)
            at = state.counters.iteration if state is not None else values[0].iteration
            if self.left and at >= iteration:
                self.left -= 1
                raise error

        setattr(self, event, handler)


class TestIncompleteIterations:
    """An iteration that failed after its step is done again, with its rows and its validation."""

    @pytest.mark.parametrize("event", ["on_iteration", "on_row", "on_validation", "on_checkpoint"])
    def test_a_failing_observer_costs_nothing(self, tmp_path, event):
        """The run goes on to the state, the validation cycles and the rows of a run without the failure."""

        def job(root, observers=()):
            return run(
                root=root,
                log_every=1,
                checkpoint_every=2,
                validate_every=2,
                validate=lambda state: {"w": state.params["w"].sum()},
                sinks=[hf.sinks.JsonLines()],
                observers=observers,
            )

        with pytest.raises(hf.RunFailed, match=f"in {event}"):
            job(tmp_path / "a", [Raising(event, 4)])
        states = [job(tmp_path / "a").state, job(tmp_path / "b").state]
        assert tree.equal(*states)
        rows = [
            [
                row._replace(time=0.0, observed={})
                for path in (tmp_path / name).glob("logs/*/*.jsonl")
                for row in hf.sinks.read_rows(path)
            ]
            for name in "ab"
        ]
        assert rows[0] == rows[1]

    def test_the_message_names_validation_and_its_batch(self):
        """Who reads the error looks at the validation, not at the next training step."""

        def evaluate(params, buffers, batch):
            raise ValueError("no such column")

        validate = hf.Validator(evaluate, loader(shuffle=False))
        with pytest.raises(hf.RunFailed, match=r"in validation after iteration 2 .*float32\[3, 2\].*no such column"):
            run(validate=validate, validate_every=2)


class TestEndings:
    """What goes wrong at the end does not hide what went wrong before."""

    def test_the_first_failure_is_the_one_reported(self, tmp_path):
        """An observer that fails at the end is a warning then."""

        def broken(state, batch):
            raise KeyError("the real problem")

        with pytest.raises(hf.RunFailed, match="the real problem"):
            run(broken, root=tmp_path, observers=[Raising("on_end")])

    def test_a_failure_at_a_good_end_is_a_failed_run_with_its_state(self, tmp_path):
        """Nothing is lost: the last state is in the error and on disk."""
        with pytest.raises(hf.RunFailed, match="the end after iteration 6") as caught:
            run(root=tmp_path, observers=[Raising("on_end")])
        assert caught.value.state.counters.iteration == 6
        assert caught.value.checkpoint.is_dir()

    def test_bad_metadata_late_in_a_run_loses_nothing(self, tmp_path):
        """The failure checkpoint does without the metadata that caused the failure."""

        def metadata(state):
            return "ok" if state.counters.iteration < 6 else "loss 0.3%"

        with pytest.raises(hf.RunFailed, match="metadata") as caught:
            run(root=tmp_path, checkpoint_metadata=metadata)
        assert "iter_6" in caught.value.checkpoint.name

    def test_a_sink_that_cannot_flush_does_not_cost_the_checkpoint(self, tmp_path):
        """The state is kept; the rows that the sink lost are said to be lost."""

        class Full(hf.sinks.JsonLines):
            def flush(self):
                if self.full:
                    raise OSError("no space left")
                return super().flush()

            full = False

        sink = Full()

        def step(state, batch):
            if state.counters.iteration == 4:
                sink.full = True
                raise ValueError("stop here")
            return STEP(state, batch)

        with pytest.raises(hf.RunFailed, match="stop here") as caught:
            run(step, root=tmp_path, sinks=[sink])
        assert "iter_4" in caught.value.checkpoint.name


class TestLateFaults:
    """A step that turns bad after its first iterations never gets a bad state onto the disk."""

    def test_a_late_change_of_structure_is_never_saved(self, tmp_path):
        """The good checkpoints stay the newest, and the same line goes on from them."""

        def step(state, batch):
            new = STEP(state, batch)
            return new if state.counters.iteration < 4 else new.replace(params={"w": new.params["w"].double()})

        with pytest.raises(hf.RunFailed, match=r"(?s)changed the structure.*float32\[2, 2\] became float64"):
            run(step, root=tmp_path, checkpoint_every=5)
        assert tree.equal(run(root=tmp_path, checkpoint_every=5).state, run().state)

    def test_a_late_write_to_the_drivers_fields_has_no_effect(self):
        """Key and validation are the driver's: what a step puts there does not stay."""

        def step(state, batch):
            new = STEP(state, batch)
            return new.replace(key=hf.random.key(99)) if state.counters.iteration > 3 else new

        assert tree.equal(run(step).state, run().state)

    def test_a_state_that_holds_a_graph_is_refused_at_once(self):
        """In the first iteration, not at the first save."""

        def step(state, batch):
            w = state.params["w"].clone().requires_grad_()
            return state.replace(params={"w": w * 2})

        with pytest.raises(hf.RunFailed, match=r"(?s)iteration 1 .*params\['w'\].*detach"):
            run(step)

    def test_a_validation_that_writes_to_the_state_is_caught(self):
        """The habit of copying averaged weights into the model would change training."""

        def validate(state):
            state.params["w"].zero_()
            return {"m": 0.0}

        with pytest.raises(hf.RunFailed, match=r"validate wrote to its input at params\['w'\]"):
            run(validate=validate, validate_every=2)


class TestSignals:
    """One handler for all loops of a process."""

    def test_loops_that_end_in_another_order_leave_no_handler_behind(self):
        """First in, first out, as people who keep several loops of their own may do."""
        previous = signal.getsignal(signal.SIGTERM)
        loops = [hf.iterate(STEP, fresh(), loader(), config()) for _ in range(2)]
        for states in loops:
            next(states)
        for states in loops:
            states.close()
        assert signal.getsignal(signal.SIGTERM) is previous

    def test_a_loop_closed_in_another_thread_leaves_no_dead_handler(self):
        """The first signal afterwards means what it meant before the run."""
        received = []
        previous = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
        try:
            states = hf.iterate(STEP, fresh(), loader(), config())
            next(states)
            thread = threading.Thread(target=states.close)
            thread.start()
            thread.join()
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [1]
        finally:
            signal.signal(signal.SIGTERM, previous)

    def test_a_notice_is_followed_by_a_first_signal(self, tmp_path):
        """Schedulers send SIGUSR1 some time before SIGTERM; neither a repeated notice nor what follows it aborts."""

        class Scheduler(hf.Observer):
            def on_iteration(self, state):
                for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
                    signal.raise_signal(number)

        result = run(root=tmp_path, observers=[Scheduler()])
        assert (result.reason, result.message) == (hf.Reason.SIGNAL, "SIGUSR1")

    def test_a_second_signal_after_a_notice_aborts(self):
        """SIGTERM and SIGINT count together."""

        class Scheduler(hf.Observer):
            def on_iteration(self, state):
                for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                    signal.raise_signal(number)

        with pytest.raises(KeyboardInterrupt):
            run(observers=[Scheduler()])

    def test_a_handler_of_the_users_for_sigusr1_stays(self):
        """Some print tracebacks by it: only where it would end the process is it taken for a request to stop."""
        received = []
        previous = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
        try:
            result = run(should_stop=lambda state: signal.raise_signal(signal.SIGUSR1))
            assert result.reason is hf.Reason.TOTAL
            assert len(received) == 5
        finally:
            signal.signal(signal.SIGUSR1, previous)

    def test_a_signal_inside_a_nested_run_stops_the_outer_one_in_order(self, tmp_path):
        """The inner run ends as always, so the outer state is exact; then the outer run stops."""
        inner = []

        def validate(state):
            if state.counters.iteration == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            inner.append(run(total=3).reason)
            return {"m": 1.0}

        outer = run(root=tmp_path, validate=validate, validate_every=2)
        assert set(inner) == {hf.Reason.TOTAL}
        assert outer.reason is hf.Reason.SIGNAL
        assert outer.state.counters.iteration == 2

    def test_a_run_in_a_thread_works_and_leaves_signals_alone(self):
        """Handlers can only be installed by the main thread."""
        previous = signal.getsignal(signal.SIGINT)
        results = []
        thread = threading.Thread(target=lambda: results.append(run()))
        thread.start()
        thread.join()
        assert results[0].reason is hf.Reason.TOTAL
        assert signal.getsignal(signal.SIGINT) is previous


class TestEarlyStopOnResume:
    """Bookkeeping belongs to the metric it was made for."""

    def test_another_metric_starts_its_bookkeeping_anew(self, tmp_path, caplog):
        """The best value of a loss is not compared with an accuracy."""
        values = {"validate": lambda s: {"loss": 1.0, "accuracy": float(s.counters.iteration)}, "validate_every": 1}
        run(total=2, root=tmp_path, early_stop=hf.EarlyStop("loss", 9), **values)
        result = run(total=6, root=tmp_path, early_stop=hf.EarlyStop("accuracy", 2, mode="max"), **values)
        assert result.reason is hf.Reason.TOTAL
        assert result.state.validation.best == 6.0
        assert "its best value starts anew" in caplog.text

    def test_going_back_to_before_the_change_starts_it_anew_as_well(self, tmp_path):
        """A rollback to the checkpoint of the resume, whose best value is that of the other metric."""

        def step(state, batch):
            return STEP(state, (batch[0] * math.nan, batch[1]) if state.counters.iteration == 4 else batch)

        values = {
            "validate": lambda s: {"loss": 1.0, "accuracy": s.counters.iteration / 10},
            "validate_every": 1,
            "root": tmp_path,
        }
        run(total=2, early_stop=hf.EarlyStop("loss", 9), **values)
        watched = hf.EarlyStop("accuracy", 2, mode="max")
        result = run(step, total=6, early_stop=watched, non_finite="rollback", check_finite_every=5, **values)
        assert result.state.counters.iteration == 6
        assert (result.state.validation.best, result.state.validation.bad_cycles) == (0.6, 0)

    def test_best_is_the_checkpoint_that_was_validated(self, tmp_path):
        """Later checkpoints repeat the last validation's metrics; they are not what it looked at."""
        losses = iter([3.0, 1.0, 2.0])
        keywords = {"root": tmp_path, "early_stop": hf.EarlyStop("loss", 9), "checkpoint_every": 1, "validate_every": 2}
        run(validate=lambda s: {"loss": next(losses)}, **keywords)
        result = run(validate=lambda s: {"loss": 0.0}, resume="best", total=4, **{**keywords, "validate_every": 3})
        assert result.state.counters.iteration == 4
        assert len(list(tmp_path.glob("superseded/*/checkpoints/*iter_5"))) == 1


class TestSmallThings:
    """Borders."""

    def test_should_stop_is_not_asked_of_a_fresh_state(self):
        """It has no metrics yet."""
        result = run(total=math.inf, should_stop=lambda state: float(state.metrics["loss"]) > 0)
        assert result.state.counters.iteration == 1

    def test_the_initial_state_is_not_kept_alive(self):
        """A callable ``init_state`` lets the first parameters go as soon as the second exist."""
        references = []

        def make():
            state = fresh()
            references.append(weakref.ref(state.params["w"]))
            return state

        for state in hf.iterate(STEP, make, loader(), config()):
            if state.counters.iteration == 2:
                gc.collect()
                assert references[0]() is None

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"pass_through": [KeyError, 5]}, TypeError, "pass_through lists exception types"),
            ({"sinks": hf.sinks.JsonLines()}, TypeError, "are lists"),
            ({"observers": [hf.Observer]}, TypeError, "takes instances"),
            ({"step": 5}, TypeError, "step must be a function"),
            ({"device": "nonsense"}, ValueError, "device='nonsense' cannot be used"),
            ({"early_stop": {"monitor": "x"}, "validate_every": 1}, TypeError, "must be an hf.EarlyStop"),
        ],
    )
    def test_mistakes_are_found_at_the_border(self, keywords, error, message):
        """Before the first step."""
        with pytest.raises(error, match=message):
            run(**keywords)

    def test_the_training_loader_cannot_be_validated_on_at_the_same_time(self):
        """A loader has one reader; the remedy is named at the start."""
        data = loader()
        validate = hf.Validator(lambda p, b, batch: hf.Aux(metrics={"m": 1.0}), data)
        with pytest.raises(ValueError, match=r"loader.replace\(\)"):
            run(data=data, validate=validate, validate_every=1)

    def test_a_state_that_went_bad_is_no_state_to_start_from(self):
        """Otherwise every launch would fail at its first look."""
        with pytest.raises(ValueError, match="went bad in iteration 4"):
            run(state=fresh().replace(first_bad=torch.tensor(3)))

    def test_a_path_that_is_no_checkpoint_lists_the_choices(self, tmp_path):
        """A typing error in ``resume`` is told what it could have been."""
        with pytest.raises(hf.CheckpointError, match="'auto', 'last', 'best'"):
            run(root=tmp_path, resume="latest")

    def test_validation_returns_the_same_names_in_every_cycle(self):
        """All validation rows have the same columns."""
        with pytest.raises(hf.RunFailed, match=r"returned \['m2'\] after \['m1'\]"):
            run(validate=lambda s: {f"m{s.counters.iteration}": 1.0}, validate_every=1)

    def test_a_whole_number_written_as_a_float_is_a_number_of_units(self):
        """1e4 is how people write ten thousand."""
        assert config(total=1e1).total == 10

    def test_a_missing_row_of_metrics_may_be_nan(self):
        """`guard_finite` looks at parameters and losses, so other metrics may have nothing to tell."""

        def step(state, batch):
            new = STEP(state, batch)
            return new.replace(metrics={"loss": new.metrics["loss"], "now_and_then": torch.tensor(math.nan)})

        assert run(hf.guard_finite(step)).reason is hf.Reason.TOTAL

    def test_the_averages_of_the_state_and_the_step_must_fit(self):
        """Neither is forgotten in silence."""
        with pytest.raises(hf.RunFailed, match=r"averages would never be updated"):
            run(state=fresh(average=hf.ema(0.9)))
        assert OPTIMIZER is not None
        assert len(X) == len(Y)
