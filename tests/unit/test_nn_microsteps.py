"""The mean over the micro-batches of one iteration."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helios_fn import accumulate, random, tree
from helios_fn.distributed.reduction import Partial, combine, reduce_alone
from helios_fn.nn import functional, microsteps, value_and_grad
from helios_fn.state import micro_keys
from helios_fn.types import Aux, Counters, MicroBatches

SEEDS = st.integers(0, 2**31)
REDUCTIONS = st.sampled_from(["tree", "fold"])


def state_of(params, buffers=None, micro_step=0):
    return SimpleNamespace(params=params, buffers=buffers, key=random.key(7), counters=Counters(0, micro_step))


def split(batch, sizes):
    return tuple(zip(*(part.split(sizes) for part in batch), strict=True))


def regression(params, buffers, batch, key):
    x, y = batch
    error = (x @ params["w"] + params["b"] - y).square()
    return error.mean(), Aux(weight=len(y), metrics={"error": error.mean(), "largest": error.detach()[:1].sum()})


regression_grad = value_and_grad(regression, has_aux=True)


def regression_case(seed, samples, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return state_of({"w": draw(3, 2), "b": draw(2)}), (draw(samples, 3), draw(samples, 2))


def answers(*results):
    """A gradient function that gives these (loss, grad, Aux) one after another, whatever it is asked."""
    left = iter(results)

    def grad_fn(params, buffers, batch, key):
        loss, gradient, aux = next(left)
        return (torch.tensor(loss), aux), {"w": torch.as_tensor(gradient)}

    return grad_fn


@settings(max_examples=40)
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9), reduction=REDUCTIONS)
def test_weighted_micro_batches_equal_one_batch_of_their_union(seed, sizes, reduction):
    state, batch = regression_case(seed, sum(sizes))
    whole = microsteps(regression_grad, state, batch)
    mean = microsteps(regression_grad, state, MicroBatches(split(batch, sizes), 0, len(sizes), reduction))
    torch.testing.assert_close(mean.loss, whole.loss)
    torch.testing.assert_close(mean.grads, whole.grads)
    torch.testing.assert_close(mean.metrics["error"], whole.metrics["error"])
    assert mean.weight == whole.weight == sum(sizes)


@settings(max_examples=40)
@given(seed=SEEDS, sizes=st.lists(st.integers(0, 3), min_size=1, max_size=12).filter(any), data=st.data())
def test_the_tree_mean_has_the_same_bits_for_every_share_of_processes(seed, sizes, data):
    """Each process sums its slice; the blocks of all are combined as one process would."""
    state, batch = regression_case(seed, sum(sizes), torch.float32)
    items, count = split(batch, sizes), len(sizes)
    alone = microsteps(regression_grad, state, MicroBatches(items, 0, count))
    world = data.draw(st.integers(1, count))
    edges = [rank * count // world for rank in range(world + 1)]
    gathered: list[Partial] = []

    class Gathered(Exception):
        pass

    def gather(partial):
        gathered.append(partial)
        raise Gathered

    for start, stop in itertools.pairwise(edges):
        with pytest.raises(Gathered):
            microsteps(regression_grad, state, MicroBatches(items[start:stop], start, count), reduce=gather)
    total = combine([partial.blocks for partial in gathered], count)
    last = MicroBatches(items[edges[-2] :], edges[-2], count)
    assert tree.equal(microsteps(regression_grad, state, last, reduce=lambda partial: total), alone)


@settings(max_examples=20)
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_fold_has_the_bits_of_the_shared_arithmetic(seed, sizes):
    """An accumulating optimiser repeats it over iterations and must come to the same bits."""
    state, batch = regression_case(seed, sum(sizes), torch.float32)
    items = split(batch, sizes)
    mean = microsteps(regression_grad, state, MicroBatches(items, 0, len(sizes), "fold"))
    acc: list[torch.Tensor] = []
    for item, size in zip(items, sizes, strict=True):
        term = accumulate.scale(tree.leaves(regression_grad(state.params, None, item, None)[1]), size)
        if acc:
            accumulate.add_(acc, term)
        else:
            acc = term
    assert tree.equal(tree.leaves(mean.grads), accumulate.divide(acc, sum(sizes)))


def test_one_plain_batch_passes_through_as_it_is():
    state, batch = regression_case(0, 4, torch.float32)
    (loss, aux), grads = regression_grad(state.params, None, batch, None)

    def marked(*_):
        return ((loss, aux), grads)

    mean = microsteps(marked, state, batch)
    assert mean.grads is grads
    assert mean.buffers is state.buffers
    assert mean.weight == 4
    assert tree.equal((mean.loss, mean.metrics), (loss, dict(aux.metrics)))


def test_results_are_private_even_if_gradients_alias_what_is_alive():
    """autograd may return expanded tensors, or the very tensors of the batch."""
    shared = torch.ones(1)

    def grad_fn(*_):
        return ((torch.tensor(1.0), Aux()), {"w": shared.expand(2)})

    for reduction in ("tree", "fold"):
        mean = microsteps(grad_fn, state_of({"w": torch.zeros(2)}), MicroBatches((0, 0, 0), 0, 3, reduction))
        assert tree.equal(mean.grads, {"w": torch.ones(2)})
    assert tree.equal(shared, torch.ones(1))


def test_each_micro_batch_has_its_own_key_scope_and_the_buffers_of_the_start():
    state = state_of({"w": torch.zeros(2)}, {"seen": torch.zeros(1)}, micro_step=10)
    seen = []

    def loss_fn(params, buffers, batch, key):
        seen.append((key, torch.rand(2), buffers["seen"].item()))
        return params["w"].sum(), Aux(buffers={"seen": buffers["seen"] + 1})

    batch = MicroBatches((0, 1), 3, 5)
    outside = torch.get_rng_state()
    with pytest.raises(ValueError, match="no block starts at micro-batch 0 of 5"):
        microsteps(value_and_grad(loss_fn, has_aux=True), state, batch)
    assert torch.equal(torch.get_rng_state(), outside)
    for (key, draw, start), expected in zip(seen, micro_keys(state, batch), strict=True):
        with random.scope(expected):
            assert tree.equal((key, draw, start), (expected, torch.rand(2), 0.0))
    assert not torch.equal(seen[0][1], seen[1][1])


def test_floating_buffers_become_the_weighted_mean_and_counters_advance_once():
    model, params, buffers = functional(lambda: nn.BatchNorm1d(3))
    x = torch.randn(7, 3)

    def loss_fn(params, buffers, batch, key):
        output, buffers = model(params, buffers, batch)
        return output.square().mean(), Aux(buffers=buffers, weight=len(batch))

    items = x.split([4, 3])
    mean = microsteps(value_and_grad(loss_fn, has_aux=True), state_of(params, buffers), MicroBatches(items, 0, 2))
    statistics = [0.9 * buffers["running_mean"] + 0.1 * item.mean(0) for item in items]
    torch.testing.assert_close(mean.buffers["running_mean"], (4 * statistics[0] + 3 * statistics[1]) / 7)
    assert mean.buffers["num_batches_tracked"] == 1
    assert buffers["num_batches_tracked"] == 0


def test_constant_buffers_keep_their_bits():
    """A mean of equal values is not exactly these, and an infinite mask would become NaN."""
    constants = {
        "frozen": torch.randn(50),
        "mask": torch.tensor([0.0, -math.inf, math.nan]),
        "phases": torch.polar(torch.ones(9), torch.randn(9)),
        "flag": torch.tensor(True),
        "scalar": 3,
    }

    def copies():
        return {name: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for name, leaf in constants.items()}

    for buffers in (lambda: constants, copies):
        grad_fn = answers(*[(1.0, [1.0], Aux(buffers=buffers(), weight=weight)) for weight in (3, 0.7, 1)])
        mean = microsteps(grad_fn, state_of({"w": torch.zeros(1)}, constants), MicroBatches((0, 0, 0), 0, 3))
        assert tree.equal(mean.buffers, constants)


def test_a_weightless_micro_batch_poisons_nothing():
    poison = Aux(buffers={"r": torch.tensor([math.nan])}, weight=0, metrics={"m": math.nan})
    sound = Aux(buffers={"r": torch.tensor([3.0])}, weight=2, metrics={"m": 5.0})
    state = state_of({"w": torch.zeros(1)}, {"r": torch.ones(1)})
    for reduction in ("tree", "fold"):
        for results in (
            [(math.nan, [math.nan], poison), (1.0, [4.0], sound)],
            [(1.0, [4.0], sound), (math.inf, [math.inf], poison)],
        ):
            mean = microsteps(answers(*results), state, MicroBatches((0, 0), 0, 2, reduction))
            expected = (torch.tensor(1.0), {"w": torch.tensor([4.0])}, {"r": torch.tensor([3.0])}, 2)
            assert tree.equal((mean.loss, mean.grads, mean.buffers, int(mean.weight)), expected)
            assert mean.metrics["m"] == 5


@pytest.mark.parametrize("batch", [0, MicroBatches((0, 0), 0, 2), MicroBatches((0, 0), 0, 2, "fold")])
@pytest.mark.parametrize("weight", [0, 0.0, torch.tensor(0)])
def test_a_total_weight_of_zero_gives_zeros_and_the_old_buffers(batch, weight):
    aux = Aux(buffers={"n": torch.tensor(5), "r": torch.tensor([math.nan])}, weight=weight, metrics={"m": math.nan})
    old = {"n": torch.tensor(4), "r": torch.ones(1)}
    state = state_of({"w": torch.zeros(1)}, old)
    mean = microsteps(answers(*[(math.nan, [math.nan], aux)] * 2), state, batch)
    expected = (torch.tensor(0.0), {"w": torch.zeros(1)}, old, {"m": torch.tensor(0.0, dtype=torch.float64)})
    assert tree.equal((mean.loss, mean.grads, mean.buffers, mean.metrics), expected)
    assert mean.weight == 0


@pytest.mark.parametrize("weight", [2, 2.0, True + 1, np.int64(2), np.float32(2), torch.tensor(2), torch.tensor(2.0)])
def test_a_weight_may_be_any_real_number(weight):
    results = [(1.0, [1.0], Aux(weight=weight)), (4.0, [4.0], Aux(weight=1))]
    mean = microsteps(answers(*results), state_of({"w": torch.zeros(1)}), MicroBatches((0, 0), 0, 2))
    assert tree.equal((mean.loss, mean.grads["w"]), (torch.tensor(2.0), torch.tensor([2.0])))
    assert not isinstance(mean.weight, torch.Tensor)
    assert mean.weight == 3


@pytest.mark.parametrize("batch", [torch.ones(2), MicroBatches((torch.ones(2), torch.ones(1)), 0, 2)])
def test_weights_that_are_known_only_to_the_compiler_stay_tensors(batch):
    """As on an accelerator, where reading a weight would wait for the device."""
    state = state_of({"w": torch.ones(())}, {"r": torch.ones(1)})

    def loss_fn(params, buffers, x, scale):
        return (params["w"] * x / x).mean(), Aux(buffers={"r": buffers["r"] * 3}, weight=x.sum() * scale)

    def run(scale):
        def keyed(params, buffers, x, key):
            return loss_fn(params, buffers, x, scale)

        mean = microsteps(value_and_grad(keyed, has_aux=True), state, batch)
        return mean.loss, mean.grads["w"], mean.buffers["r"], mean.weight

    loss, grads, buffers, weight = torch.vmap(run)(torch.tensor([1.0, 0.0]))
    assert weight.tolist()[1] == 0
    assert weight[0] > 0
    assert loss.tolist() == [1, 0]
    assert grads.tolist() == [1, 0]
    assert buffers.tolist() == [[3], [1]]


def test_metrics_are_detached_scalars_of_the_types_they_came_in():
    given_metrics = {
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "number": 0.1,
        "count": torch.tensor(3),
        "graph": torch.tensor(2.0, requires_grad=True),
        "numpy": np.float32(0.5),
    }
    expected = {
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "number": torch.tensor(0.1, dtype=torch.float64),
        "count": torch.tensor(3.0),
        "graph": torch.tensor(2.0),
        "numpy": torch.tensor(0.5, dtype=torch.float64),
    }
    for batch in (0, MicroBatches((0, 0), 0, 2)):
        results = answers(*[(1.0, [1.0], Aux(metrics=given_metrics))] * 2)
        mean = microsteps(results, state_of({"w": torch.zeros(1)}), batch)
        assert tree.equal(mean.metrics, expected)
        assert not mean.metrics["graph"].requires_grad


def test_no_aux_is_an_empty_one():
    mean = microsteps(answers((1.0, [2.0], None)), state_of({"w": torch.zeros(1)}, {"r": 1}), 0)
    assert (mean.buffers, mean.metrics, mean.weight) == ({"r": 1}, {}, 1)


PLAIN = (1.0, [1.0], Aux())


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        ([(1.0, [1.0], {"weight": 1})], TypeError, "a loss_fn returns an hf.Aux or None, got dict"),
        ([PLAIN, (1.0, [1.0], Aux(weight=-1))], ValueError, "weight of micro-batch 1 must be finite and not negative"),
        ([(1.0, [1.0], Aux(weight=math.nan))], ValueError, "weight of micro-batch 0 must be finite .* got nan"),
        ([(1.0, [1.0], Aux(weight=torch.tensor(math.inf)))], ValueError, "must be finite .* got inf"),
        ([(1.0, [1.0], Aux(weight=torch.ones(2)))], ValueError, r"0-d tensor, got float32\[2\]: give the number of"),
        ([(1.0, [1.0], Aux(weight="8"))], TypeError, "must be a number or tensor, got str '8'"),
        (
            [(1.0, [1.0], Aux(metrics={"m": torch.ones(3)}))],
            ValueError,
            r"metric 'm' .* got float32\[3\]: take its mean",
        ),
        ([(1.0, [1.0], Aux(metrics={"m": "x"}))], TypeError, "metric 'm' must be a number or 0-d tensor, got str"),
        ([(1.0, [1.0], Aux(metrics={3: 1.0}))], TypeError, "named by strings, got 3"),
        ([(1.0, [1.0], Aux(metrics=[1.0]))], TypeError, "metrics must map names to scalars, got list"),
        (
            [(1.0, [1.0], Aux(metrics={"a": 1})), (1.0, [1.0], Aux(metrics={"b": 1}))],
            ValueError,
            r"same metrics: \['a'\] in micro-batch 0, \['b'\] in micro-batch 1",
        ),
        (
            [(1.0, [1.0], Aux()), (1.0, [1.0], Aux(buffers={"r": torch.zeros(1)}))],
            ValueError,
            r"micro-batch 1 changes the buffer \['r'\], but micro-batch 0 returned it as it was",
        ),
        (
            [(1.0, [1.0, 2.0], Aux()), (1.0, [1.0], Aux())],
            ValueError,
            r"equal shapes: one has \(2,\) where another has \(1,\)",
        ),
        ([(1.0, [1.0], Aux(buffers={"r": 2.0}))], TypeError, r"buffer \['r'\] is float 2.0: .* must be a tensor"),
        ([(1.0, [1.0], Aux(buffers={}))], ValueError, "micro-batch 0 returned buffers of another structure"),
    ],
)
def test_what_cannot_be_averaged_is_refused(results, error, message):
    state = state_of({"w": torch.zeros(1)}, {"r": torch.ones(1)})
    with pytest.raises(error, match=message):
        microsteps(answers(*results), state, MicroBatches((0,) * len(results), 0, len(results)))


def test_a_process_without_micro_batches_is_refused_for_now():
    with pytest.raises(ValueError, match="none of the iteration's 3 micro-batches"):
        microsteps(answers(), state_of({}), MicroBatches((), 3, 3))


def test_a_process_alone_sums_what_it_has():
    state, batch = regression_case(3, 5)
    batches = MicroBatches(split(batch, [2, 2, 1]), 0, 3)
    alone = microsteps(regression_grad, state, batches, reduce=reduce_alone)
    assert tree.equal(microsteps(regression_grad, state, batches), alone)


def test_the_order_of_elements_in_memory_does_not_matter():
    """Gradients may lie in memory otherwise than their parameters, and otherwise from one batch size to the next."""
    params = {"w": torch.zeros(2, 3, 4), "v": torch.zeros(4, 3).t()}
    generator = torch.Generator().manual_seed(0)
    rows = [{name: torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()} for _ in range(3)]

    def mean(forms):
        given = iter(
            [({name: form(leaf) for name, leaf in row.items()}) for row, form in zip(rows, forms, strict=True)]
        )

        def grad_fn(params, buffers, batch, key):
            return (torch.tensor(0.0), Aux(weight=1)), next(given)

        return microsteps(grad_fn, state_of(params), MicroBatches((0, 1, 2), 0, 3)).grads

    def turned(leaf):
        return leaf.permute(*reversed(range(leaf.dim()))).contiguous().permute(*reversed(range(leaf.dim())))

    plain = mean([torch.clone] * 3)
    assert tree.equal(mean([turned, torch.clone, turned]), plain)
    assert tree.equal(mean([turned] * 3), plain)
    assert plain["v"].stride() == params["v"].stride()
