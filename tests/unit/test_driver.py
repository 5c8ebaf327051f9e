"""The driver's border and its ends: every way in that is wrong, every way out that is right."""

from __future__ import annotations

import dataclasses
import math
import os
import signal

import pytest
import torch
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import tree
from helios_fn.testing import Crash, Stop, run_with

from ..jobs import Case, build

X = torch.arange(20.0).reshape(10, 2) / 20
Y = torch.arange(10) % 2


def loader(**changes) -> hf.Loader:
    return hf.Loader(TensorDataset(X, Y), **{"batch_size": 3, **changes})


def config(**changes) -> hf.RunConfig:
    return hf.RunConfig(**{"unit": "iteration", "total": 6, "progress": False, **changes})


OPTIMIZER = hf.optim.adamw(0.1)


def loss_fn(params, buffers, batch, key):
    x, y = batch
    return torch.nn.functional.cross_entropy(x @ params["w"], y), hf.Aux(weight=len(y))


STEP = hf.make_step(loss_fn, OPTIMIZER)


def fresh(**keywords) -> hf.TrainState:
    return hf.init_state({"w": torch.ones(2, 2)}, OPTIMIZER, **keywords)


def run(step=STEP, state=None, data=None, **changes) -> hf.Result:
    keywords = {name: changes.pop(name) for name in list(changes) if name in RUN_KEYWORDS}
    return hf.run(step, state or fresh(), data or loader(), config(**changes), **keywords)


RUN_KEYWORDS = {"validate", "sinks", "observers", "should_stop", "pass_through", "checkpoint_metadata"}


def fails_with(step) -> str:
    with pytest.raises(hf.RunFailed) as caught:
        run(step)
    return str(caught.value)


class TestSteps:
    """A step that breaks its contract is found in its first iterations."""

    def test_returns_nothing(self):
        """Forgetting to return is named."""
        assert "must return a TrainState, got NoneType: did it forget to return?" in fails_with(lambda s, b: None)

    def test_returns_something_else(self):
        """So is returning only the parameters."""
        assert "must return a TrainState, got dict" in fails_with(lambda s, b: s.params)

    def test_changes_the_structure(self):
        """The table shows the path with what it was and what it became."""
        message = fails_with(lambda s, b: s.replace(params={"w": s.params["w"].double(), "v": torch.ones(1)}))
        assert "params['w']: float32[2, 2] became float64[2, 2]" in message
        assert "params['v']: absent became float32[1]" in message

    def test_writes_to_its_input(self):
        """An in-place update is named by its leaf."""

        def step(state, batch):
            state.params["w"].add_(1.0)
            return state.replace(metrics={})

        assert "wrote to its input at params['w']" in fails_with(step)

    def test_writes_to_its_batch(self):
        """The batch is an input too."""

        def step(state, batch):
            batch[0].zero_()
            return state

        assert "wrote to its input at batch[0]" in fails_with(step)

    def test_writes_where_no_version_counter_looks(self):
        """A write through ``.data`` moves no version counter and is found by value."""

        def step(state, batch):
            state.params["w"].data[0, 0] = 5.0
            return state

        assert "wrote to its input at params['w']" in fails_with(step)

    def test_writes_later(self):
        """After the full checks, version counters still find a write."""

        def step(state, batch):
            if state.counters.iteration == 4:
                state.params["w"].mul_(2.0)
            return state

        assert "iteration 5" in fails_with(step)

    @pytest.mark.parametrize(
        ("draw", "name"),
        [
            (lambda: torch.rand(1), "torch"),
            (lambda: __import__("random").random(), "random"),
            (lambda: __import__("numpy").random.rand(), "numpy"),
        ],
    )
    def test_draws_from_a_global_generator(self, draw, name):
        """The generator is named, and the remedy is a scope."""

        def step(state, batch):
            draw()
            return state

        message = fails_with(step)
        assert "drew from global random state" in message
        assert name in message
        assert "hf.random.scope" in message

    def test_advances_the_cursor_itself(self):
        """Counting is the driver's."""
        message = fails_with(lambda s, b: s.replace(counters=s.counters._replace(iteration=9)))
        assert "state.counters, which only the driver may advance" in message

    @pytest.mark.parametrize(("value", "remedy"), [(torch.ones(2), "0-d tensor"), (1.0, "0-d tensor")])
    def test_logs_something_that_is_no_scalar(self, value, remedy):
        """A metric is a 0-d tensor."""
        assert remedy in fails_with(lambda s, b: s.replace(metrics={"loss": value}))

    def test_changes_its_metrics(self):
        """All rows of a log have the same columns."""

        def step(state, batch):
            return state.replace(metrics={f"m{state.counters.iteration // 4}": torch.tensor(1.0)})

        assert "wrote metrics ['m1'] after ['m0']" in fails_with(step)


class TestArguments:
    """Contradictions are refused before anything is written."""

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"total": math.inf}, ValueError, "would train for ever"),
            ({"validate_every": 2}, ValueError, "pass validate"),
            ({"validate": lambda state: {}}, ValueError, "set validate_every"),
            ({"state": {"w": 1}}, TypeError, "init_state must be a TrainState"),
            ({"data": [1, 2]}, TypeError, "list"),
            ({"resume": "last"}, ValueError, "set root"),
            ({"observers": [object()]}, TypeError, "observes nothing"),
            ({"sinks": [hf.sinks.JsonLines("a"), hf.sinks.JsonLines("b")]}, ValueError, "two sinks are named"),
        ],
    )
    def test_refused(self, keywords, error, message):
        """Each with its remedy."""
        with pytest.raises(error, match=message):
            run(**keywords)

    def test_a_state_that_cannot_be_saved_is_refused_by_path(self):
        """Before the first step, so that no training is lost."""
        with pytest.raises(TypeError, match=r"extra\['f'\]"):
            run(state=fresh(extra={"f": object()}))

    def test_an_unwritable_root_is_refused_before_the_first_step(self, tmp_path):
        """A file in the way is as bad as missing rights, and works for root too."""
        (tmp_path / "file").write_text("")
        calls = []
        with pytest.raises(hf.CheckpointError, match="file"):
            run(lambda s, b: calls.append(1), root=tmp_path / "file" / "run")
        assert not calls

    def test_epoch_cadences_are_refused_for_streams(self):
        """A stream has no epochs to count."""
        stream = hf.Stream(lambda position, key: iter([(X[0], 1)]), batch_size=1)
        with pytest.raises(ValueError, match="log_every counts epochs"):
            run(data=stream, log_every=hf.Every(1, "epoch"))
        with pytest.raises(ValueError, match="use unit='iteration'"):
            run(data=stream, unit="epoch")


class TestFailures:
    """When training raises, the last complete state is kept and the error says where it happened."""

    @staticmethod
    def broken(state, batch):
        if state.counters.iteration == 3:
            raise KeyError("boom")
        return STEP(state, batch)

    def test_the_state_before_the_failure_is_saved_and_named(self, tmp_path):
        """The error carries state, iteration, batch and checkpoint; the same line goes on from there."""
        with pytest.raises(hf.RunFailed, match="iteration 4") as caught:
            run(self.broken, root=tmp_path)
        failure = caught.value
        assert isinstance(failure.__cause__, KeyError)
        assert failure.iteration == failure.state.counters.iteration == 3
        assert "float32[1, 2]" in failure.batch
        assert failure.checkpoint.is_dir()
        assert tree.equal(run(root=tmp_path).state, run().state)

    def test_listed_types_pass_unchanged(self, tmp_path):
        """The caller who handles an exception gets that very exception, and nothing is lost either."""
        with pytest.raises(KeyError, match="boom"):
            run(self.broken, root=tmp_path, pass_through=(KeyError,))
        assert run(root=tmp_path).state.counters.iteration == 6

    def test_an_observer_that_raises_fails_the_run(self):
        """Observers are the user's code too."""

        class Bad(hf.Observer):
            def on_iteration(self, state):
                raise ZeroDivisionError("in the observer")

        with pytest.raises(hf.RunFailed, match="in the observer"):
            run(observers=[Bad()])

    def test_a_state_that_was_written_to_is_not_saved(self, tmp_path):
        """After an impure step the last checkpoint from before stays the newest."""

        def step(state, batch):
            new = STEP(state, batch)
            if state.counters.iteration == 1:
                state.params["w"].zero_()
            return new

        with pytest.raises(hf.RunFailed, match="wrote to its input") as caught:
            run(step, root=tmp_path)
        assert caught.value.checkpoint is None
        assert tree.equal(run(root=tmp_path).state, run().state)

    def test_test_wraps_failures_too(self):
        """`hf.test` raises `RunFailed` with the batch; listed types pass."""

        def evaluate(params, buffers, batch):
            raise KeyError("bad")

        with pytest.raises(hf.RunFailed, match=r"float32\[3, 2\].*bad"):
            hf.test(evaluate, fresh(), loader(shuffle=False))
        with pytest.raises(KeyError):
            hf.test(evaluate, fresh(), loader(shuffle=False), pass_through=(KeyError,))


class TestNonFinite:
    """NaN in iteration 4, once, by policy."""

    @staticmethod
    def step():
        def step(state, batch):
            if state.counters.iteration == 3:
                batch = (batch[0] * math.nan, batch[1])
            return STEP(state, batch)

        return step

    def test_raise_names_the_iteration_and_keeps_the_good_checkpoint(self, tmp_path):
        """The default: training stops with the iteration that went bad, and nothing bad is saved."""
        with pytest.raises(hf.RunFailed, match="not finite in iteration 4") as caught:
            run(self.step(), root=tmp_path, checkpoint_every=2, check_finite_every=1)
        assert isinstance(caught.value.__cause__, hf.NonFiniteError)
        assert tree.equal(run(root=tmp_path, checkpoint_every=2).state, run().state)

    def test_raise_looks_at_the_end_at_the_latest(self):
        """However rare the checks, a run never ends well with a bad state."""
        with pytest.raises(hf.RunFailed, match="not finite in iteration 4"):
            run(self.step(), check_finite_every=1000)

    def test_skip_drops_exactly_one_update(self):
        """Data and counters go on; parameters and optimiser are those of five updates."""
        state = run(self.step(), non_finite="skip").state
        assert state.counters.iteration == 6
        assert OPTIMIZER.count(state.opt_state) == 5
        assert torch.isfinite(state.params["w"]).all()

    @pytest.mark.parametrize("checkpoint_every", [1, 2, 5])
    @pytest.mark.parametrize("check_finite_every", [1, 50])
    def test_rollback_ends_in_the_bits_of_skip(self, tmp_path, checkpoint_every, check_finite_every):
        """Going back and passing over the iteration equals never having taken its update, and so do the logs."""
        roots = {policy: tmp_path / policy for policy in ("skip", "rollback")}
        common = {"checkpoint_every": checkpoint_every, "check_finite_every": check_finite_every, "log_every": 1}
        results, logs = {}, {}
        for policy, root in roots.items():
            sink = hf.sinks.JsonLines()
            results[policy] = run(self.step(), non_finite=policy, root=root, sinks=[sink], **common)
            (path,) = root.glob("logs/*/metrics.jsonl")
            logs[policy] = [repr(row._replace(time=0.0, observed={})) for row in hf.sinks.read_rows(path)]
        assert tree.equal(results["skip"].state, results["rollback"].state)
        assert logs["skip"] == logs["rollback"]

    def test_stop_ends_the_run_with_its_reason(self, tmp_path):
        """The bad state is returned but never saved; relaunching finds the same end."""
        for _ in range(2):
            result = run(self.step(), non_finite="stop", root=tmp_path, checkpoint_every=1, check_finite_every=5)
            assert result.reason is hf.Reason.NON_FINITE
            assert int(result.state.first_bad) == 3
            assert result.state.counters.iteration == 5

    def test_a_handwritten_step_is_guarded_by_guard_finite(self):
        """`guard_finite` gives any step the leaf that the policies read."""

        def step(state, batch):
            value = math.nan if state.counters.iteration == 2 else 1.0
            return state.replace(metrics={"loss": torch.tensor(value)})

        with pytest.raises(hf.RunFailed, match="not finite in iteration 3"):
            run(hf.guard_finite(step))


class TestEnds:
    """Every reason to stop, and what is on disk then."""

    def test_should_stop_gives_its_own_words(self, tmp_path):
        """A text is the message; the last state is on disk; running again trains nothing."""
        steps = []

        def step(state, batch):
            steps.append(1)
            return STEP(state, batch)

        def enough(state):
            return "seen enough" if state.counters.iteration >= 3 else False

        first = run(step, total=math.inf, root=tmp_path, should_stop=enough)
        again = run(step, total=math.inf, root=tmp_path, should_stop=enough)
        assert (first.reason, first.message) == (hf.Reason.SHOULD_STOP, "seen enough") == again[1:]
        assert len(steps) == 3
        assert tree.equal(first.state, again.state)

    def test_early_stop_counts_cycles_without_improvement(self):
        """The limit is reached after the best cycle plus ``cycles`` bad ones."""
        losses = iter([3.0, 2.0, 2.5, 2.1, 2.2, 1.0])
        result = run(
            total=100,
            validate=lambda state: {"loss": next(losses)},
            validate_every=1,
            early_stop=hf.EarlyStop("loss", 3),
        )
        assert result.reason is hf.Reason.EARLY_STOP
        assert result.state.counters.iteration == 5
        assert (result.state.validation.best, result.state.validation.bad_cycles) == (2.0, 3)

    def test_a_metric_that_is_watched_must_be_there(self):
        """The error lists what validate returned."""
        with pytest.raises(hf.RunFailed, match="watches 'loss', but validate returned accuracy"):
            run(validate=lambda s: {"accuracy": 1.0}, validate_every=1, early_stop=hf.EarlyStop("loss", 3))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    def test_a_signal_stops_at_the_next_boundary_and_saves(self, tmp_path, number):
        """The run ends well, is not finished, and the same line goes on to the same bits."""

        class Killer(hf.Observer):
            def on_iteration(self, state):
                if state.counters.iteration == 2:
                    os.kill(os.getpid(), number)

        previous = signal.getsignal(number)
        first = run(root=tmp_path, observers=[Killer()])
        assert first.reason is hf.Reason.SIGNAL
        assert not first.reason.finished
        assert first.exit_status == 75
        assert first.state.counters.iteration == 2
        assert signal.getsignal(number) is previous
        assert tree.equal(run(root=tmp_path).state, run().state)

    def test_a_second_signal_aborts(self):
        """Who presses Ctrl-C twice means it."""

        class Impatient(hf.Observer):
            def on_iteration(self, state):
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run(observers=[Impatient()])

    def test_a_larger_total_goes_on_exactly(self, tmp_path):
        """Training three more iterations equals having asked for them at once."""
        run(total=3, root=tmp_path)
        assert tree.equal(run(total=6, root=tmp_path).state, run(total=6).state)

    def test_leaving_the_loop_saves_the_last_state(self, tmp_path):
        """Who keeps their own loop and breaks out of it loses nothing."""
        for state in hf.iterate(STEP, fresh(), loader(), config(root=tmp_path)):
            if state.counters.iteration == 2:
                break
        seen = [s.counters.iteration for s in hf.iterate(STEP, fresh(), loader(), config(root=tmp_path))]
        assert seen == [3, 4, 5, 6]

    def test_the_initial_state_may_be_a_function(self):
        """So that nobody else holds the first state."""
        assert tree.equal(run(state=fresh).state, run().state)

    def test_a_step_may_see_fewer_micro_batches_but_always_the_same_kind(self):
        """With S > 1 a step receives `MicroBatches`, also where the epoch has only one left."""
        seen = []

        def step(state, batch):
            seen.append((type(batch).__name__, len(batch.items), batch.start, batch.count))
            return state

        run(step, unit="epoch", total=1, micro_batches=3)
        assert seen == [("MicroBatches", 3, 0, 3), ("MicroBatches", 1, 0, 1)]


class TestResume:
    """Which checkpoint a run goes on from."""

    def test_none_insists_on_a_fresh_start(self, tmp_path):
        """Existing checkpoints are never overwritten by accident."""
        run(root=tmp_path)
        with pytest.raises(hf.CheckpointError, match="already holds"):
            run(root=tmp_path, resume=None)

    def test_last_insists_on_a_checkpoint(self, tmp_path):
        """``last`` never starts afresh in silence."""
        with pytest.raises(hf.CheckpointError, match="found no checkpoint"):
            run(root=tmp_path, resume="last")
        run(root=tmp_path)
        assert run(root=tmp_path, resume="last").state.counters.iteration == 6

    def test_best_is_the_one_with_the_best_validation(self, tmp_path):
        """By the monitor and mode of early_stop; newer checkpoints are moved away, not deleted."""
        losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5}
        keywords = {
            "validate": lambda state: {"loss": losses[state.counters.iteration]},
            "validate_every": 1,
            "checkpoint_every": 1,
            "early_stop": hf.EarlyStop("loss", 9),
            "root": tmp_path,
        }
        run(total=4, **keywords)
        result = run(total=2, resume="best", **keywords)
        assert result.state.counters.iteration == 2
        assert len(list(tmp_path.glob("superseded/*/checkpoints/*"))) == 2

    def test_an_older_checkpoint_moves_newer_ones_and_rows_away(self, tmp_path):
        """Going back is explicit, loses nothing, and the log continues as if the rest had not been."""
        keywords = {"root": tmp_path, "checkpoint_every": 2, "log_every": 1}
        whole = run(sinks=[hf.sinks.JsonLines()], **keywords)
        older = next(path for path in (tmp_path / "checkpoints").iterdir() if path.name.endswith("iter_2"))
        again = run(sinks=[hf.sinks.JsonLines()], resume=older, **keywords)
        assert tree.equal(whole.state, again.state)
        (log,) = tmp_path.glob("logs/*/metrics.jsonl")
        assert [row.iteration for row in hf.sinks.read_rows(log)] == [1, 2, 3, 4, 5, 6]
        assert len(list(tmp_path.glob("superseded/*/checkpoints/*"))) == 2
        assert list(tmp_path.glob("superseded/*/metrics.jsonl"))

    def test_a_checkpoint_elsewhere_is_a_branch(self, tmp_path):
        """A path outside the root needs an empty root, and continues there."""
        run(total=3, root=tmp_path / "a")
        source = next(path for path in (tmp_path / "a" / "checkpoints").iterdir() if "iter_3" in path.name)
        branch = run(root=tmp_path / "b", resume=source)
        assert tree.equal(branch.state, run().state)
        with pytest.raises(hf.CheckpointError, match="branches off"):
            run(root=tmp_path / "b", resume=source)

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"unit": "epoch"}, "unit"),
            ({"accumulation_steps": 2}, "micro_batches"),
            ({"reduction": "fold"}, "reduction"),
            ({"state": fresh(seed=1)}, "seed"),
            ({"data": loader(batch_size=2)}, "data.batch_size"),
            ({"data": loader(shuffle=False)}, "data.order"),
            ({"data": loader(drop_last=True)}, "data.drop_last"),
            ({"data": hf.Loader(TensorDataset(X[:9], Y[:9]), batch_size=3)}, "data.length"),
        ],
    )
    def test_another_geometry_is_refused(self, tmp_path, changes, name):
        """Each fact that decides bits is compared, and named with both values."""
        run(total=2, root=tmp_path)
        with pytest.raises(hf.ResumeRefused, match=f"{name}: saved .* now "):
            run(root=tmp_path, **changes)

    def test_another_model_is_refused_with_a_table_of_paths(self, tmp_path):
        """Saved and expected stand side by side."""
        run(total=2, root=tmp_path)
        other = hf.init_state({"v": torch.ones(3)}, OPTIMIZER)
        with pytest.raises(hf.ResumeRefused, match=r"(?s)params\['v'\].*float32\[3\]") as caught:
            run(state=other, root=tmp_path)
        assert "params['w']" in str(caught.value)

    @pytest.mark.parametrize(
        "changes",
        [
            {"log_every": 1}, {"checkpoint_every": 1}, {"total": 9}, {"data": loader(workers=1)},
            {"check_finite_every": 1}, {"purity_checks": 0},
        ],
    )  # fmt: skip
    def test_what_decides_no_bits_may_change(self, tmp_path, changes):
        """Workers, cadences and a larger total are free."""
        run(total=2, root=tmp_path)
        total = changes.get("total", 6)
        assert tree.equal(run(root=tmp_path, **changes).state, run(total=total).state)

    def test_another_number_of_threads_is_reported(self, tmp_path, caplog):
        """It may change bits, so it is said, and the run goes on."""
        run(total=2, root=tmp_path)
        torch.set_num_threads(2)
        try:
            run(root=tmp_path)
        finally:
            torch.set_num_threads(1)
        assert "environment.threads was 1" in caplog.text or "threads was 1" in caplog.text

    def test_a_moved_root_goes_on(self, tmp_path):
        """Nothing in a checkpoint depends on where the folder is."""
        sink = [hf.sinks.JsonLines()]
        run(total=2, root=tmp_path / "here", log_every=1, sinks=sink)
        (tmp_path / "here").rename(tmp_path / "there")
        run(root=tmp_path / "there", log_every=1, sinks=sink)
        (log,) = tmp_path.glob("there/logs/*/metrics.jsonl")
        assert [row.iteration for row in hf.sinks.read_rows(log)] == [1, 2, 3, 4, 5, 6]

    def test_damage_falls_back_to_the_checkpoint_before(self, tmp_path):
        """A truncated file costs iterations, never the run; without any valid checkpoint it is an error."""
        run(total=4, root=tmp_path, checkpoint_every=2)
        newest_first = sorted((tmp_path / "checkpoints").iterdir(), key=lambda p: -int(p.name.split("_")[-1]))
        file = newest_first[0] / "tensors.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        assert tree.equal(run(root=tmp_path, checkpoint_every=2).state, run().state)
        assert list((tmp_path / "damaged").iterdir())
        for folder in (tmp_path / "checkpoints").iterdir():
            (folder / "manifest.json").unlink()
        with pytest.raises(hf.CheckpointError, match="none of"):
            run(root=tmp_path)

    def test_two_runs_in_one_root_exclude_each_other(self, tmp_path):
        """The second is refused while the first is at work."""
        states = hf.iterate(STEP, fresh(), loader(), config(root=tmp_path))
        next(states)
        with pytest.raises(hf.RootLocked, match=str(os.getpid())):
            run(root=tmp_path)
        states.close()
        run(root=tmp_path)


class TestObservers:
    """Observers hear everything in a fixed order and change nothing."""

    def test_the_order_of_events(self, tmp_path):
        """Start, then per iteration: iteration, row, validation, checkpoint; last the end."""
        events = []

        class Listener(hf.Observer):
            def on_start(self, info, state):
                events.append(("start", info.start_iteration))

            def on_iteration(self, state):
                events.append(("iteration", state.counters.iteration))

            def on_row(self, row):
                events.append((row.kind, row.iteration))

            def on_validation(self, state):
                events.append(("validated", state.validation.cycles))

            def on_checkpoint(self, path, state):
                events.append(("saved", state.counters.iteration))

            def on_end(self, state, reason):
                events.append(("end", reason))

        run(
            total=2,
            root=tmp_path,
            log_every=1,
            checkpoint_every=1,
            validate_every=2,
            validate=lambda s: {"m": 1.0},
            observers=[Listener()],
            async_save=False,
        )
        assert events == [
            ("start", 0), ("saved", 0), ("iteration", 1), ("train", 1), ("saved", 1), ("iteration", 2), ("train", 2),
            ("validation", 2), ("validated", 1), ("saved", 2), ("end", hf.Reason.TOTAL),
        ]  # fmt: skip


class TestValidation:
    """Means over the validation set are exact."""

    def test_ragged_batches_are_weighted(self):
        """The mean over samples does not depend on the batch size."""

        def evaluate(params, buffers, batch):
            return hf.Aux(metrics={"x": batch[0].mean()}, weight=len(batch[0]))

        found = [hf.test(evaluate, fresh(), loader(batch_size=size, shuffle=False))["x"] for size in (1, 3, 4, 10)]
        assert found == pytest.approx([float(X.mean())] * 4, rel=1e-6)

    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            ({"x": 1.0}, "must return hf.Aux"),
            (hf.Aux(), "without metrics"),
            (hf.Aux(metrics={"x": 1.0}, weight=0), "total weight"),
        ],
    )
    def test_mistakes_are_named(self, returned, message):
        """What an eval_fn must return is said."""
        with pytest.raises(hf.RunFailed, match=message):
            hf.test(lambda p, b, batch: returned, fresh(), loader(shuffle=False))

    def test_averaged_parameters_can_be_evaluated(self):
        """``params`` picks what is evaluated; nothing is swapped."""
        state = fresh(average=hf.ema(0.5))

        def evaluate(params, buffers, batch):
            return hf.Aux(metrics={"w": params["w"].sum()}, weight=1)

        assert hf.test(evaluate, state, loader(), params=lambda s: s.averages)["w"] == 4.0


def test_a_job_crashes_as_told():
    """The test kit's own crash saves nothing on the way out."""
    job = build(Case(total=5, checkpoint_every=hf.Every(3, "iteration")))
    trace = run_with(job, [Stop(5, "crash")])
    assert sorted(trace.batches) == [0, 1, 2, 3, 4]
    assert issubclass(Crash, BaseException)
    assert not issubclass(Crash, Exception)
    assert dataclasses.is_dataclass(trace)
