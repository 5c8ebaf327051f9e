"""How much is trained and read: limits, totals in any measure, time, trials before the run."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import helios_fn as hf
from helios_fn import tree

from ..strategies import examples

X = torch.arange(22.0).reshape(11, 2) / 22
OPTIMIZER = hf.optim.sgd(0.1, momentum=0.9)


def loss_fn(params, buffers, batch, key):
    return ((batch[0] @ params["w"]) ** 2).mean(), hf.Aux(weight=len(batch[0]))


STEP = hf.make_step(loss_fn, OPTIMIZER)


def fresh() -> hf.TrainState:
    return hf.init_state({"w": torch.ones(2)}, OPTIMIZER)


def loader(**changes) -> hf.Loader:
    return hf.Loader(TensorDataset(X), **{"batch_size": 2, **changes})


def config(**changes) -> hf.RunConfig:
    return hf.RunConfig(**{"unit": "iteration", "total": 6, "progress": False, **changes})


def run(data=None, **changes) -> hf.Result:
    keywords = {name: changes.pop(name) for name in ("validate", "observers", "sinks") if name in changes}
    return hf.run(STEP, fresh(), data or loader(), config(**changes), **keywords)


def evaluate(params, buffers, batch):
    return hf.Aux(metrics={"w": params["w"].sum(), "n": len(batch[0])}, weight=1)


class TestTotal:
    """A total in another measure than the unit, counted once at the start."""

    @settings(deadline=None, max_examples=examples(25))
    @given(
        n=st.integers(1, 30),
        unit=st.sampled_from(["iteration", "epoch", "sample"]),
        of=st.sampled_from(["iteration", "epoch"]),
        batch_size=st.integers(1, 5),
        micro_batches=st.integers(1, 3),
        limit=st.none() | st.integers(1, 4),
    )
    def test_a_run_trains_as_much_as_it_was_told_and_less_than_one_unit_more(
        self, n, unit, of, batch_size, micro_batches, limit
    ):
        """Counted by what the steps really received."""
        n = n if unit == "sample" else min(n, 5)
        seen: list[tuple[int, int, int]] = []

        def count(state, batch):
            items = batch.items if isinstance(batch, hf.MicroBatches) else (batch,)
            samples = sum(len(x) for (x,) in items)
            seen.append((state.counters.iteration + 1, samples, len(items)))
            return state

        data = loader(batch_size=batch_size, drop_last=batch_size == 3)
        cfg = config(unit=of, total=hf.Total(n, unit), micro_batches=micro_batches, limit_train_batches=limit)
        result = hf.run(count, fresh(), data, cfg)
        inside = data.batches_per_epoch if limit is None else min(limit, data.batches_per_epoch)
        ends = [0, *(done for done, _, _ in seen)]
        states = [(done, done_epochs(seen[:done], inside), sum(s for _, s, _ in seen[:done])) for done in ends]
        reached = {"iteration": 0, "epoch": 1, "sample": 2}[unit]
        assert result.reason is hf.Reason.TOTAL
        assert states[-1][reached] >= n
        one_less = [state for state in states if unit_of(state, of) == unit_of(states[-1], of) - 1]
        assert not one_less or one_less[0][reached] < n

    def test_what_cannot_be_counted_is_refused(self):
        """Streams and phases have no length of an epoch; a million may be written 1e6."""
        stream = hf.Stream(lambda position, key: iter([(X[0], 1)]), 1)
        for data, total in ((stream, hf.Total(3, "epoch")), (stream, hf.Total(3, "sample"))):
            with pytest.raises(ValueError, match="a stream has no epochs: give a total in iterations"):
                run(data, total=total)
        with pytest.raises(ValueError, match="phases may have"):
            run(hf.Phases([loader(), loader()], [lambda s: False]), total=hf.Total(3, "sample"))
        batches = hf.data.CustomBatches(lambda key, epoch, n: [[0], [1, 2]], 2)
        with pytest.raises(ValueError, match="does not tell how many samples"):
            run(loader(batch_size=None, order=batches), total=hf.Total(3, "sample"))
        assert hf.Total(1e6, "sample") == hf.Total(1_000_000, "sample")
        for bad in ((0, "sample"), (1.5, "sample"), (1, "hour")):
            with pytest.raises(ValueError, match=r"Total\."):
                hf.Total(*bad)

    def test_a_longer_total_goes_on(self, tmp_path):
        """As with a number; the manifest records the count."""
        run(total=hf.Total(8, "sample"), root=tmp_path)
        result = run(total=hf.Total(2, "epoch"), root=tmp_path)
        assert result.state.counters.iteration == 12
        assert tree.equal(result.state.params, run(total=12).state.params)

    def test_time_ends_an_endless_run(self):
        """Without another condition; the next launch would go on."""
        clock = iter(range(100))
        result = hf.run(STEP, fresh(), loader(), config(total=math.inf, max_time=5.0), clock=lambda: next(clock))
        assert result.reason is hf.Reason.TIME
        with pytest.raises(ValueError, match="set early_stop or max_time"):
            run(total=math.inf)


def done_epochs(seen, inside: int) -> int:
    return sum(count for *_, count in seen) // inside


def unit_of(state, unit: str) -> int:
    return state[0] if unit == "iteration" else state[1]


class TestLimits:
    """Limits in the configuration are the loader's transforms."""

    @pytest.mark.parametrize(
        ("changes", "transform"),
        [
            ({"limit_train_batches": 2}, lambda data: data.limit(2)),
            ({"limit_train_batches": 0.5}, lambda data: data.limit(0.5)),
            ({"overfit_batches": 2}, lambda data: data.overfit(2)),
            ({"overfit_batches": 0.4}, lambda data: data.overfit(2)),
        ],
    )
    def test_the_bits_are_those_of_the_transformed_loader(self, changes, transform, tmp_path):
        """And a resume with another limit is refused by what it reads."""
        limited = run(root=tmp_path, **changes).state
        assert tree.equal(limited, run(transform(loader())).state)
        with pytest.raises(hf.ResumeRefused, match=r"data\."):
            run(root=tmp_path, total=8)

    def test_a_data_loader_is_limited_too(self):
        """It is rebuilt as a loader first."""
        theirs = DataLoader(TensorDataset(X), batch_size=2, shuffle=True)
        assert tree.equal(run(theirs, limit_train_batches=2).state, run(loader(), limit_train_batches=2).state)

    def test_each_phase_is_limited(self):
        """A curriculum of limited loaders."""
        late = [lambda state: state.counters.iteration >= 3]
        found = run(hf.Phases([loader(), loader(batch_size=3)], late), limit_train_batches=1).state
        same = hf.Phases([loader().limit(1), loader(batch_size=3).limit(1)], late)
        assert tree.equal(found, run(same).state)

    def test_a_limited_validation_reads_the_first_batches(self, tmp_path):
        """So many, or that fraction; the limit is recorded, and its absence too."""
        validator = hf.Validator(evaluate, loader(batch_size=3, shuffle=False))
        keywords = {"validate": validator, "validate_every": 2}
        found = [
            float(run(limit_valid_batches=limit, **keywords).state.validation.metrics["n"]) for limit in (1, 0.75, None)
        ]
        assert found == [3.0, 3.0, 11 / 4]
        assert validator.limit(2).limit(3).batches == 2
        run(limit_valid_batches=1, root=tmp_path, **keywords)
        run(limit_valid_batches=0.25, root=tmp_path, **keywords)
        with pytest.raises(hf.ResumeRefused, match="valid_batches: saved 1, now None"):
            run(root=tmp_path, **keywords)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"limit_train_batches": 0}, r"limit_train_batches must be a number of batches .* got 0"),
            ({"overfit_batches": 1.5}, "overfit_batches must be"),
            ({"limit_valid_batches": True}, "limit_valid_batches must be"),
            ({"overfit_batches": 1, "limit_train_batches": 1}, "give one of them"),
            ({"limit_valid_batches": 1}, "set validate_every"),
            ({"sanity_batches": 1}, "set validate_every"),
            ({"sanity_batches": -1}, "sanity_batches must be"),
            ({"limit_valid_batches": 1, "validate_every": 1, "validate": lambda state: {}}, "limits an hf.Validator"),
            ({"limit_train_batches": 1, "data": hf.Stream(lambda p, k: iter([]), 1)}, "Stream is none"),
        ],
    )
    def test_a_mistake_is_named(self, changes, message):
        """Values, combinations, and what cannot be limited."""
        with pytest.raises(ValueError, match=message):
            run(**changes)


class TestSanity:
    """Validation is tried before the first step of a fresh run."""

    @pytest.mark.parametrize("own", [False, True])
    def test_a_fault_in_it_costs_no_training(self, own, tmp_path):
        """Nothing is trained or saved, and the line that is run again after mending it starts afresh."""
        stepped = []

        def step(state, batch):
            stepped.append(state.counters.iteration)
            return STEP(state, batch)

        def faulty(params, buffers, batch):
            raise KeyError("mistyped")

        validate = (lambda state: faulty(0, 0, 0)) if own else hf.Validator(faulty, loader(shuffle=False))
        cfg = config(validate_every=6, sanity_batches=1, root=tmp_path)
        with pytest.raises(
            hf.RunFailed, match=r"in validation, which is tried out before iteration 1.*mistyped"
        ) as caught:
            hf.run(step, fresh(), loader(), cfg, validate=validate)
        assert stepped == []
        assert caught.value.checkpoint is None
        assert not list(tmp_path.glob("checkpoints/*_iter_*"))
        hf.run(step, fresh(), loader(), cfg, validate=hf.Validator(evaluate, loader(shuffle=False)))
        assert stepped == list(range(6))

    @settings(deadline=None, max_examples=examples(6))
    @given(st.integers(1, 9), st.booleans(), st.integers(1, 5))
    def test_no_bit_changes(self, batches, noisy, stop):
        """Whatever validation draws; not when it goes on, either."""

        def drawing(params, buffers, batch):
            calls.append(len(batch[0]))
            return hf.Aux(metrics={"m": torch.rand(()) if noisy else torch.ones(())})

        calls: list[int] = []
        validator = hf.Validator(drawing, loader(shuffle=False))
        with tempfile.TemporaryDirectory() as root:
            keywords = {"validate": validator, "validate_every": 6}
            run(total=stop, root=root, sanity_batches=batches, **keywords)
            assert len(calls) == min(batches, 6)
            found = run(root=root, sanity_batches=batches, **keywords).state
            assert len(calls) == min(batches, 6) + 6
        assert tree.equal(found, run(**keywords).state)

    def test_what_the_bookkeeping_would_refuse_is_refused_at_once(self):
        """The metric that early stop watches has another name; batches without weight prove nothing."""
        cfg = {"validate_every": 2, "sanity_batches": 2, "early_stop": hf.EarlyStop("loss", 5)}
        with pytest.raises(hf.RunFailed, match="early_stop watches 'loss', but validate returned n, w"):
            run(validate=hf.Validator(evaluate, loader(shuffle=False)), **cfg)
        first = hf.Validator(
            lambda p, b, x: hf.Aux(metrics={"loss": 1.0}, weight=float(x[0][0, 0] > 0.5)), loader(shuffle=False)
        )
        assert run(validate=first, **cfg).reason is hf.Reason.TOTAL


class TestDevRun:
    """A few iterations of everything, and nothing left."""

    @pytest.mark.parametrize("unit", ["iteration", "epoch"])
    def test_everything_happens_and_nothing_is_left(self, unit, tmp_path, monkeypatch):
        """Rows, validation and checkpoints; no file in the run's root, in the temporary folder or from a sink."""
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        happened = []

        class Listener(hf.Observer):
            def on_row(self, row):
                happened.append((row.kind, row.iteration))

            def on_checkpoint(self, path, state):
                assert Path(path).is_dir()
                happened.append(("saved", state.counters.iteration))

        root = tmp_path / "root"
        cfg = config(
            unit=unit, total=1000, root=root, validate_every=7, checkpoint_every=9, async_save=False, resume="last",
            early_stop=hf.EarlyStop("w", 5), retention=hf.Retention(best=1, monitor="w"), non_finite="rollback",
        )  # fmt: skip
        result = hf.dev_run(
            STEP,
            fresh(),
            loader(),
            cfg,
            validate=hf.Validator(evaluate, loader(shuffle=False)),
            observers=[Listener()],
            sinks=[hf.sinks.JsonLines(tmp_path / "rows.jsonl")],
        )
        assert result.state.counters.iteration == 2
        assert float(result.state.validation.metrics["n"]) == 2.0
        validated = [("validation", 1)] if unit == "iteration" else []
        assert happened == [
            ("saved", 0), ("train", 1), *validated, ("saved", 1), ("train", 2), ("validation", 2), ("saved", 2)
        ]  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
        assert not list(scratch.iterdir())
        short = run(total=2) if unit == "iteration" else run(total=2, data=loader().limit(2))
        assert tree.equal(result.state.params, short.state.params)

    def test_fingerprints_are_not_missed(self, caplog):
        """No sink is open that could keep them; that is no mistake of the long run."""
        hf.dev_run(STEP, fresh(), loader(), config(fingerprint_every=1), sinks=[hf.sinks.JsonLines("unused")])
        assert not caplog.text

    def test_mistakes_are_found_by_it(self):
        """A step that fails, arguments that do not fit, and a wrong number."""
        with pytest.raises(hf.RunFailed, match="division by zero"):
            hf.dev_run(lambda state, batch: 1 / 0, fresh(), loader(), config())
        with pytest.raises(ValueError, match="pass validate"):
            hf.dev_run(STEP, fresh(), loader(), config(validate_every=5))
        with pytest.raises(ValueError, match="iterations must be"):
            hf.dev_run(STEP, fresh(), loader(), config(), iterations=0)
        with pytest.raises(TypeError, match="sinks and observers are lists"):
            hf.dev_run(STEP, fresh(), loader(), config(), sinks=hf.sinks.TextLog())

    def test_streams_phases_and_overfitting(self):
        """Each kind of data, by itself short enough."""
        stream = hf.Stream(lambda position, key: iter([((X[0],), 1), ((X[1],), 2)]), 1)
        assert hf.dev_run(STEP, fresh(), stream, config()).state.counters.iteration == 2
        phases = hf.Phases([loader(), loader()], [lambda state: True])
        assert hf.dev_run(STEP, fresh(), phases, config(unit="epoch")).state.counters.iteration == 1
        few = config(unit="epoch", overfit_batches=1.0)
        assert hf.dev_run(STEP, fresh(), loader(), few, iterations=3).state.counters.iteration == 3


def test_experiments_know_the_new_fields():
    """A total by a table, limits by numbers."""
    text = """
        [model]
        name = "m"
        [data]
        dataset = "d"
        batch_size = 2
        [loss]
        name = "cross_entropy"
        [optimizer]
        name = "sgd"
        lr = 0.1
        [run]
        unit = "iteration"
        total = {n = 1000, unit = "sample"}
        limit_train_batches = 0.5
        max_time = 60.0
        """
    experiment = hf.Experiment.loads(text)
    assert experiment.run.total == hf.Total(1000, "sample")
    assert hf.Experiment.loads(experiment.dumps()).run == experiment.run
    assert dataclasses.replace(experiment.run, total=5).limit_train_batches == 0.5
