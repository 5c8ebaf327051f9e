"""Evaluation and prediction: folds over a loader, exact over ragged batches and whatever the split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import helios_fn as hf
from helios_fn import tree
from helios_fn.driver.table import Table

from ..strategies import examples

N = 11
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(2))
W = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
STATE = hf.init_state({"w": W}, hf.optim.sgd(0.1), average=hf.ema(0.5))
CONFUSION, TOP2 = hf.metrics.confusion(3), hf.metrics.top_k(2)


def loader(batch_size=3, **changes) -> hf.Loader:
    return hf.Loader(TensorDataset(X, Y), batch_size, **{"shuffle": False, **changes})


def evaluate(params, buffers, batch):
    scores = batch[0] @ params["w"]
    loss = torch.nn.functional.cross_entropy(scores, batch[1])
    measured = {"of": CONFUSION(scores, batch[1]), "top2": TOP2(scores, batch[1]), "mean": hf.metrics.mean()(scores)}
    return hf.Aux(metrics={"loss": loss, **measured}, weight=len(batch[1]))


def predictions(params, buffers, batch):
    scores = batch[0] @ params["w"]
    return {"scores": scores.bfloat16(), "class": scores.argmax(1), "sure": scores.amax(1) > 0}


class TestMetrics:
    """Metrics of `helios_fn.metrics` beside scalars, in one evaluation."""

    @settings(deadline=None, max_examples=examples(8))
    @given(st.integers(1, N))
    def test_counts_are_those_of_the_whole_set(self, size):
        """For any size of batches; scalars and means to rounding."""
        scores = X @ W
        found = hf.test(evaluate, STATE, loader(size))
        assert torch.equal(found["of/matrix"], CONFUSION(scores, Y).compute()["matrix"])
        assert found["top2"] == TOP2(scores, Y).compute()
        assert found["of/f1"] == CONFUSION(scores, Y).compute()["f1"]
        assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, Y)), rel=1e-6)
        assert found["mean"] == pytest.approx(float(scores.mean()), rel=1e-6)

    def test_scalars_alone_are_recorded(self):
        """A matrix is for `hf.test`; a run's validation, its early stop and its rows see the scalars by name."""
        validator = hf.Validator(evaluate, loader())
        assert set(validator.results(STATE)) - set(validator(STATE)) == {"of/matrix"}
        step = hf.make_step(lambda p, b, batch, key: evaluate(p, b, batch).metrics["loss"], hf.optim.sgd(0.1))
        stop = hf.EarlyStop("of/f1", cycles=9, mode="max")
        cfg = hf.RunConfig("iteration", 2, validate_every=1, early_stop=stop, progress=False)
        state = hf.init_state({"w": W}, hf.optim.sgd(0.1))
        found = hf.run(step, state, loader(), cfg, validate=validator).state.validation
        assert sorted(found.metrics) == ["loss", "mean", "of/accuracy", "of/f1", "of/precision", "of/recall", "top2"]
        assert found.best == float(found.metrics["of/f1"])

    def test_averaged_parameters_are_evaluated_by_choice(self):
        """In a run, a `Validator` of the averages sees these, after each update; nothing is swapped."""
        optimizer, average = hf.optim.sgd(0.5), hf.ema(0.5)
        step = hf.make_step(lambda p, b, batch, key: ((batch[0] @ p["w"]) ** 2).mean(), optimizer, average=average)
        validate = hf.Validator(
            lambda p, b, batch: hf.Aux(metrics={"w": p["w"].abs().sum().double()}),
            loader(),
            params=lambda s: s.averages,
        )
        cfg = hf.RunConfig("iteration", 3, validate_every=1, progress=False)
        state = hf.init_state({"w": W}, optimizer, average=average)
        for new in hf.iterate(step, state, loader(), cfg, validate=validate):
            averaged, plain = (float(weights["w"].abs().sum()) for weights in (new.averages, new.params))
            assert float(new.validation.metrics["w"]) == pytest.approx(averaged) != plain

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            ({"a": hf.metrics.accuracy()}, "metric 'a' of eval_fn must be a scalar, or a metric called on the batch"),
            ({"a": 1.0}, r"returned metrics \['a'\] after \['a'\]"),
            ({"a": hf.metrics.confusion(2)(Y % 2, Y % 2)}, "not of one metric"),
            ({"a": TOP2(X[:, :3], Y), "b": 1.0}, r"returned metrics \['a', 'b'\] after \['a'\]"),
        ],
    )
    def test_a_mistake_in_a_later_batch_is_named(self, second, message):
        """Another kind of metric, or one of another size."""
        given = [{"a": TOP2(X[:, :3], Y)}, second]
        with pytest.raises(hf.RunFailed, match=message):
            hf.test(lambda p, b, batch: hf.Aux(metrics=given[int(batch)]), STATE, hf.Loader([0, 1], 1, shuffle=False))

    def test_a_batch_without_weight_says_nothing(self):
        """Neither by scalars nor by counts, and its metrics may be others."""
        given = [hf.Aux(metrics={"z": 3.0}, weight=0), evaluate(STATE.params, None, (X, Y))]
        given.append(given[1]._replace(weight=0))
        table = Table()
        for aux in given:
            table.add(aux)
        assert table.results()["of/matrix"].sum() == N
        assert "z" not in table.results()

    def test_a_weight_is_finite(self):
        """An infinite one would make NaN of all metrics, without a word."""
        with pytest.raises(hf.RunFailed, match=r"Aux\.weight must count samples or tokens, got inf"):
            hf.test(lambda p, b, batch: hf.Aux(metrics={"a": 1.0}, weight=float("inf")), STATE, loader())

    def test_a_validator_of_a_class_of_ones_own_stays_one(self):
        """On fewer batches, or on other ones, with whatever else it has."""

        class Named(hf.Validator):
            label = ""

            def __call__(self, state, on_batch=None):
                return {f"{self.label}/{name}": value for name, value in super().__call__(state, on_batch).items()}

        whole = Named(lambda p, b, batch: hf.Aux(metrics={"n": len(batch[0])}, weight=1), loader())
        whole.label = "held out"
        assert whole.limit(1)(STATE) == {"held out/n": 3.0}
        assert whole.over(loader(5)).limit(1)(STATE) == {"held out/n": 5.0}

    def test_metrics_of_members_are_scalars(self):
        """An ensemble's evaluation says so."""
        together = hf.evaluate_members(lambda p, b, x: hf.Aux(metrics={"of": hf.metrics.mean()(p["w"])}))
        stacked = hf.stack([STATE, STATE])
        with pytest.raises(hf.RunFailed, match="'of' cannot be mapped over members"):
            hf.test(together, stacked, loader())


class TestPredict:
    """Outputs in the order of the samples."""

    @settings(deadline=None, max_examples=examples(6))
    @given(st.integers(1, N), st.integers(1, N))
    def test_they_are_those_of_each_batch_joined(self, size, taken):
        """For ragged batches, any tree and any dtype; the batches themselves come from `predict_batches`."""
        data = loader(size).take(taken)
        found = hf.predict(predictions, STATE, data)
        parts = [predictions(STATE.params, None, (X[:taken][at : at + size],)) for at in range(0, taken, size)]
        assert tree.equal(found, tree.map(lambda *leaves: torch.cat(leaves), *parts))
        one_by_one = list(hf.predict_batches(predictions, STATE, data))
        assert [number for number, _ in one_by_one] == list(range(len(parts)))
        assert tree.equal([output for _, output in one_by_one], parts)

    def test_draws_are_a_function_of_the_seed_and_the_batch(self):
        """Twice the same, another for another seed, and the caller's generator is untouched."""
        before = torch.random.get_rng_state()

        def noisy(seed):
            return hf.predict(lambda p, b, x: torch.rand(len(x[0])), hf.init_state({"w": W}, seed=seed), loader())

        assert torch.equal(noisy(1), noisy(1))
        assert not torch.equal(noisy(1), noisy(2))
        assert len(noisy(1).unique()) == N
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_no_gradient_and_no_mode_is_left_behind(self):
        """Between two batches, gradients can be taken as before."""
        for _, output in hf.predict_batches(predictions, STATE, loader()):
            assert torch.is_grad_enabled()
            assert not output["scores"].requires_grad

    def test_averages_and_reports(self):
        """``params`` picks what predicts, and ``on_batch`` hears of each batch."""
        heard = []
        found = hf.predict(
            predictions,
            STATE.replace(averages={"w": 0 * W}),
            loader(),
            params=lambda state: state.averages,
            on_batch=lambda done, total: heard.append((done, total)),
        )
        assert float(found["scores"].abs().max()) == 0
        assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda p, b, x: 1.0, "must return tensors with a row for each sample, got float 1.0"),
            (lambda p, b, x: {"a": x[0].sum()}, r"got float32\[\] at \['a'\]"),
            (lambda p, b, x: (x[0], x[0][:1]), r"as many rows as it has samples, got \[1, 3\]"),
            (lambda p, b, x: torch.zeros(len(x[0]), len(x[0])), "outputs of batch 3, .*2.*, do not fit"),
            (lambda p, b, x: 1 / 0, r"predicting failed on batch .*float32\[3, 4\].*division by zero"),
        ],
    )
    def test_a_mistake_is_named_with_the_batch(self, function, message):
        """In both forms; listed types pass."""
        with pytest.raises(hf.RunFailed, match=message):
            hf.predict(function, STATE, loader())
        with pytest.raises(hf.RunFailed, match=message):
            list(hf.predict_batches(function, STATE, loader()))

    def test_what_the_reader_raises_is_the_readers(self):
        """Neither listed types nor the loop around `predict_batches` are wrapped."""
        with pytest.raises(ZeroDivisionError):
            hf.predict(lambda p, b, x: 1 / 0, STATE, loader(), pass_through=(ZeroDivisionError,))
        batches = hf.predict_batches(predictions, STATE, loader())
        next(batches)
        with pytest.raises(ZeroDivisionError):
            batches.throw(ZeroDivisionError())

    def test_the_border(self):
        """A shuffled loader, arguments in the wrong order, and a stream."""
        shuffled = [loader(shuffle=True), DataLoader(TensorDataset(X, Y), 3, shuffle=True)]
        for data in shuffled:
            with pytest.raises(ValueError, match="in an order that nobody knows"):
                hf.predict(predictions, STATE, data)
        with pytest.raises(TypeError, match="the order is predict"):
            hf.predict(STATE, predictions, loader())
        with pytest.raises(ValueError, match="a stream has no end"):
            hf.predict(predictions, STATE, hf.Stream(lambda position, key: iter([]), 2))
